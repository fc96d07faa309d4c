"""ss2d_norm_gate: the core of every SS2D layer, the scan followed by norm_gate over its channels, as one call.

    y   = ss2d(u, x_dbl, dt_weight, dt_bias, A_logs, Ds)    (B, D, H, W), formula in mtlkit/operators/ss2d
    out = norm_gate(y, weight, bias, z)                     over D, formula in mtlkit/operators/norm_gate

Both parts share one check of the arguments and one backend. In eager mode each has its own autograd node, so that y and
its gradient are freed early. The CUDA kernels of the scan write two maps whose sum is y; if no gradient is needed,
norm_gate adds them as it reads them, and y is never written.

Source: Liu et al., "VMamba: Visual State Space Model" (2024), figure 3.
"""

import torch
from torch import Tensor

from mtlkit.operators import norm_gate, ss2d
from mtlkit.operators._operator import Operator
from mtlkit.operators.ss2d_norm_gate.composed import (
    Composed,
    in_parts,
    ss2d_norm_gate_reference,
    ss2d_norm_gate_torch,
)
from mtlkit.operators.ss2d_norm_gate.cuda import Cuda
from mtlkit.operators.ss2d_norm_gate.signature import Inputs, Options, check, new_outputs

OPERATOR = Operator(
    "ss2d_norm_gate",
    inputs=Inputs,
    options=Options,
    check=check,
    new_outputs=new_outputs,
    kept=2,
    reference=ss2d_norm_gate_reference,
    torch_form=ss2d_norm_gate_torch,
    backends={
        "cpu": Composed(ss2d.cpu, norm_gate.cpu),
        "cuda": Cuda(ss2d.cuda, norm_gate.cuda),
        "triton": Composed(ss2d.triton, norm_gate.triton),
    },
    in_parts=in_parts,
)


def ss2d_norm_gate(
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    z: Tensor | None = None,
    eps: float = 1e-5,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """The scan in four directions, LayerNorm over its channels, times SiLU(z) if a gate z is given.

    It computes `norm_gate(ss2d(...).permute(0, 2, 3, 1), weight, bias, z, eps)` in one call, which saves overhead on
    small maps.

    Args:
        u: input, (B, D, H, W); this and the next five as in `ss2d`.
        x_dbl: projections of u, (B, 4, R + 2 N, H, W).
        dt_weight: projection of the time step, (4, D, R).
        dt_bias: its bias, (4, D).
        A_logs: logarithm of -A, (4 D, N).
        Ds: skip, (4 D,).
        weight: scale of each channel after the norm, (D,); ones if None.
        bias: added to each channel after the norm, (D,); zeros if None.
        z: gate before SiLU, (B, H, W, D).
        eps: added to the variance.
        out_dtype: dtype of the scan's output, and of the result; that of u if None.

    Returns:
        The output, (B, H, W, D), contiguous.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together, or the requested backend cannot run this call.

    Example:
        >>> import torch, mtlkit
        >>> D, N, R = 8, 16, 2
        >>> u, z = torch.randn(1, D, 7, 5), torch.randn(1, 7, 5, D)
        >>> x_dbl = torch.randn(1, 4, R + 2 * N, 7, 5)
        >>> scan = torch.randn(4, D, R), torch.randn(4, D), torch.zeros(4 * D, N), torch.ones(4 * D)
        >>> mtlkit.ops.ss2d_norm_gate(u, x_dbl, *scan, torch.ones(D), torch.zeros(D), z).shape
        torch.Size([1, 7, 5, 8])
    """
    inputs = Inputs(u, x_dbl, dt_weight, dt_bias, A_logs, Ds, weight, bias, z)
    return OPERATOR(inputs, Options(eps, out_dtype or getattr(u, "dtype", None)))[0]  # pyright: ignore[reportArgumentType] - `check` rejects None
