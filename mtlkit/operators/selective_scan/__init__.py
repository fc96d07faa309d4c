r"""The 1-D selective scan, with the semantics of mamba-ssm's `selective_scan_fn`.

B sequences, D channels, L tokens, N states, G groups of channels that share B and C.

    dt_t = softplus(delta_t + delta_bias)          the softplus is optional
    h_t  = exp(dt_t A) h_{t-1} + dt_t u_t B_t      (D, N), h_{-1} = 0
    y_t  = sum_n h_t[n] C_t[n] + D u_t             (D)
    out  = y SiLU(z)                               the gate is optional

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023), equation 2 with the
zero-order hold for A and Euler's rule for B, as in every published implementation.
"""

from typing import Literal, overload

from torch import Tensor

from mtlkit.operators._operator import Operator
from mtlkit.operators.selective_scan import cpu, cuda, triton
from mtlkit.operators.selective_scan.reference import selective_scan_reference, selective_scan_torch
from mtlkit.operators.selective_scan.signature import Inputs, Options, check, new_outputs

OPERATOR = Operator(
    "selective_scan",
    inputs=Inputs,
    options=Options,
    check=check,
    new_outputs=new_outputs,
    outputs=2,
    kept=2,
    reference=selective_scan_reference,
    torch_form=selective_scan_torch,
    backends={"cpu": cpu, "cuda": cuda, "triton": triton},
)


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    return_last_state: Literal[False] = ...,
) -> Tensor: ...
@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    *,
    return_last_state: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    return_last_state: bool = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan over sequences, with the signature and semantics of mamba-ssm's `selective_scan_fn`.

    Inputs may be float32, float64, bfloat16 or float16, in any combination, with any strides. State and sums are
    float32 (float64 if u, delta, A, B or C is). First-order gradients flow to every tensor. Results are bitwise
    reproducible on the same machine with the same number of threads.

    Args:
        u: input, (B, D, L).
        delta: time step before bias and softplus, (B, D, L).
        A: real state matrix, (D, N), negative for a stable state.
        B: input matrix: (D, N) constant, (B, N, L), or (B, G, N, L) for G groups of channels.
        C: output matrix: as B; constant and varying may be mixed.
        D: weight of the skip connection, (D,).
        z: gate, (B, D, L); the output is multiplied by SiLU(z).
        delta_bias: added to delta, (D,).
        delta_softplus: whether softplus is applied to delta.
        return_last_state: whether to return also the state after the last token.

    Returns:
        The output, (B, D, L) in the dtype and layout of u; with `return_last_state` also the last state, (B, D, N) in
        the dtype of the computation.

    Raises:
        TypeError: an argument is not a floating-point tensor, or A is complex.
        ValueError: shapes or devices do not fit together, or the requested backend cannot run this call.

    Example:
        >>> import torch, mtlkit
        >>> u, delta = torch.randn(2, 8, 100), torch.rand(2, 8, 100)
        >>> A, B, C = -torch.rand(8, 16), torch.randn(2, 16, 100), torch.randn(2, 16, 100)
        >>> mtlkit.ops.selective_scan(u, delta, A, B, C, delta_softplus=True).shape
        torch.Size([2, 8, 100])
    """
    out, last = OPERATOR(Inputs(u, delta, A, B, C, D, z, delta_bias), Options(bool(delta_softplus)))
    return (out, last) if return_last_state else out
