r"""SS2D, the four-direction 2-D selective scan of VMamba, MedMamba and VM-UNet, fused.

B images, D channels, H x W pixels, L = H W, K = 4 directions, N states, R rank of the time step, M = R + 2 N.

    k = 0  row-major      i = h W + w ascending
    k = 1  column-major   w outer, h inner
    k = 2  the reverse of k = 0
    k = 3  the reverse of k = 1

With u_k the pixels in the order of direction k, and the rows of x_dbl[k] split into dts (R), B (N) and C (N):

    dt  = softplus(dt_weight[k] dts + dt_bias[k])
    h_t = exp(-dt_t exp(A_logs[k])) h_{t-1} + dt_t u_t B_t,   h_{-1} = 0
    y_t = sum_n h_t[n] C_t[n] + Ds[k] u_t

and y is the sum of the four, each returned to image order. A 1 x 1 projection commutes with the order of pixels, so
x_dbl of all four directions is one matrix product on the image as it is.

Source: Liu et al., "VMamba: Visual State Space Model" (2024), section 4.2; Yue and Li, "MedMamba" (2024).
"""

import torch
from torch import Tensor

from mtlkit.operators._operator import Operator
from mtlkit.operators.ss2d import cpu, cuda, triton
from mtlkit.operators.ss2d.orders import cross_merge, cross_scan
from mtlkit.operators.ss2d.reference import ss2d_reference, ss2d_torch
from mtlkit.operators.ss2d.signature import Inputs, Options, check, new_outputs

__all__ = ["OPERATOR", "cross_merge", "cross_scan", "ss2d", "ss2d_reference", "ss2d_torch"]

OPERATOR = Operator(
    "ss2d",
    inputs=Inputs,
    options=Options,
    check=check,
    new_outputs=new_outputs,
    kept=1,
    reference=ss2d_reference,
    torch_form=ss2d_torch,
    backends={"cpu": cpu, "cuda": cuda, "triton": triton},
)


def ss2d(
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Four-direction 2-D selective scan, from the input and its projections to the merged output.

    Inputs may be float32, float64, bfloat16 or float16, in any combination, in any memory format and with any strides;
    channels-last is the fastest. State and sums are float32 (float64 if u or x_dbl is). First-order gradients flow to
    every tensor. Results are bitwise reproducible on the same machine with the same number of threads. The `cpu`
    backend saves a state every 32 tokens for the backward pass; no tensor of size (B, 4, D, L) is written.

    Args:
        u: input, (B, D, H, W).
        x_dbl: projections of u for the four directions, in image order, (B, 4, R + 2 N, H, W): R values for the time
            step, then B, then C. Fastest if the values of a pixel are contiguous, as a linear layer produces them.
        dt_weight: projection of the time step, (4, D, R).
        dt_bias: its bias, added before softplus, (4, D).
        A_logs: logarithm of -A, (4 D, N).
        Ds: weight of the skip connection, (4 D,).
        out_dtype: dtype of the output; that of u if None. Pass torch.float32 with float16 input if the output may
            exceed float16's range.

    Returns:
        The output, (B, D, H, W) in the memory format of u.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together, or the requested backend cannot run this call.

    Example:
        >>> import torch, mtlkit
        >>> D, N, R = 8, 16, 2
        >>> u = torch.randn(1, D, 7, 5).to(memory_format=torch.channels_last)
        >>> x_dbl = torch.randn(1, 4, R + 2 * N, 7, 5)
        >>> dt_weight, dt_bias = torch.randn(4, D, R), torch.randn(4, D)
        >>> mtlkit.ops.ss2d(u, x_dbl, dt_weight, dt_bias, torch.zeros(4 * D, N), torch.ones(4 * D)).shape
        torch.Size([1, 8, 7, 5])
    """
    inputs = Inputs(u, x_dbl, dt_weight, dt_bias, A_logs, Ds)
    return OPERATOR(inputs, Options(out_dtype or getattr(u, "dtype", None)))[0]  # pyright: ignore[reportArgumentType] - `check` rejects None
