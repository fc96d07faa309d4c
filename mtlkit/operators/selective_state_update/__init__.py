r"""selective_state_update: one token of the selective scan, for decoding.

B sequences, D channels, N states; or H heads of D channels each, with G groups of heads that share B and C.

    dt = softplus(dt + dt_bias)                    the softplus is optional
    h  = exp(dt A) h + dt x B                      (D, N), replaces the state
    y  = (sum_n h[n] C[n] + D x) SiLU(z)           the gate is optional

Source: as selective_scan; names and semantics are those of mamba-ssm's `selective_state_update`.
"""

from torch import Tensor

from mtlkit.operators._launch import as_int32
from mtlkit.operators._step import Step
from mtlkit.operators.selective_state_update import cpu
from mtlkit.operators.selective_state_update.reference import selective_state_update_torch
from mtlkit.operators.selective_state_update.signature import Inputs, Options, check, new_output

STEP = Step(
    "selective_state_update",
    state="state",
    inputs=Inputs,
    options=Options,
    check=check,
    new_output=new_output,
    torch_form=selective_state_update_torch,
    backends={"cpu": cpu.update},
)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """The next token of a selective scan, whose state is updated in place.

    Tensors may be float32, float64, bfloat16 or float16, in any combination, with any strides; expanded ones, such as
    the A of a head, are read without a copy. Sums are float32 (float64 if x, state, dt, A, B or C is). It is a decoding
    step without gradients.

    Args:
        state: (B, D, N), or with heads (B, H, D, N); updated in place.
        x: input, (B, D) or (B, H, D).
        dt: time step before bias and softplus, (B, D) or (B, H, D).
        A: real state matrix, (D, N) or (H, D, N).
        B: input matrix, (B, N), or with heads (B, G, N) for G groups of heads.
        C: output matrix, as B.
        D: weight of the skip connection, (D,) or (H, D).
        z: gate, (B, D) or (B, H, D); the output is multiplied by SiLU(z).
        dt_bias: added to dt, (D,) or (H, D).
        dt_softplus: whether softplus is applied to dt.
        state_batch_indices: the row of the state of each sequence, (B,) integers; a negative value marks padding, whose
            output is 0. The state may then have any number of rows.

    Returns:
        The output, in the shape and dtype of x.

    Raises:
        TypeError: an argument is not a tensor, or of the wrong dtype, or A is complex.
        ValueError: shapes or devices do not fit together, the state is an expanded tensor, or the requested backend
            cannot run this call.
        IndexError: state_batch_indices names a row that the state does not have.

    Example:
        >>> import torch, mtlkit
        >>> u, delta, A = torch.randn(2, 8, 5), torch.rand(2, 8, 5), -torch.rand(8, 16)
        >>> B, C, state = torch.randn(2, 16, 5), torch.randn(2, 16, 5), torch.zeros(2, 8, 16)
        >>> step = lambda t: mtlkit.ops.selective_state_update(state, u[..., t], delta[..., t], A, B[..., t], C[..., t])
        >>> y = torch.stack([step(t) for t in range(5)], -1)
        >>> torch.allclose(y, mtlkit.ops.selective_scan(u, delta, A, B, C), atol=1e-4)
        True
    """
    inputs = Inputs(x, state, dt, A, B, C, D, z, dt_bias, as_int32(state_batch_indices))
    return STEP(inputs, Options(bool(dt_softplus)))
