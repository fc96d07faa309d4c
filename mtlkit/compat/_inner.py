r"""mamba-ssm's functions: the scan, and Mamba's block between its input projection and its result.

With B sequences, D channels, L tokens, N states, R rank of the time step, w taps:

    x, z           = split(xz)                                    (B, D, L) each
    x              = SiLU(causal_conv1d(x) + b)                   token t sees x_{t-w+1} .. x_t
    dts, B, C      = split(x W_x)                                 (B, L, R | N | N)
    out            = selective_scan(x, dts W_dt, A, B, C, D, z, delta_bias, softplus) W_out + b_out

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023), figure 3; Zhu et al.,
"Vision Mamba" (2024), algorithm 1, for the form without the output projection and the bidirectional one.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mtlkit._check import check_shape, check_tensor
from mtlkit.nn.mamba import conv_silu
from mtlkit.operators.selective_scan import selective_scan, selective_scan_reference

__all__ = [
    "bimamba_inner_fn",
    "bimamba_inner_ref",
    "mamba_inner_fn",
    "mamba_inner_fn_no_out_proj",
    "mamba_inner_ref",
    "selective_scan_fn",
    "selective_scan_ref",
]

selective_scan_fn = selective_scan


def selective_scan_ref(
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
    """`selective_scan_fn` token by token in plain PyTorch; arguments and result as there.

    Example:
        >>> import torch
        >>> from mtlkit.compat import selective_scan_fn, selective_scan_ref
        >>> u, delta, A = torch.randn(1, 4, 9), torch.rand(1, 4, 9), -torch.rand(4, 2)
        >>> B, C = torch.randn(1, 2, 9), torch.randn(1, 2, 9)
        >>> torch.allclose(selective_scan_fn(u, delta, A, B, C), selective_scan_ref(u, delta, A, B, C), atol=1e-5)
        True
    """
    out, last = selective_scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return (out, last) if return_last_state else out


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Mamba's block between its input projection and its result, with the signature of mamba-ssm's `mamba_inner_fn`.

    Args:
        xz: output of the input projection, (B, 2 D, L): x, then the gate z.
        conv1d_weight: causal depthwise convolution, (D, 1, w).
        conv1d_bias: its bias, (D,).
        x_proj_weight: projection to the time step, B and C, (R + 2 N, D); rows for B or C that are given are left out.
        delta_proj_weight: projection of the time step, (D, R).
        out_proj_weight: output projection, (C, D).
        out_proj_bias: its bias, (C,).
        A: real state matrix, (D, N), negative for a stable state.
        B: input matrix, (D, N) or (B, N, L); projected from x if None.
        C: output matrix, in the same form as B.
        D: weight of the skip connection, (D,).
        delta_bias: added to the time step, (D,).
        B_proj_bias: added to a projected B, (N,).
        C_proj_bias: added to a projected C, (N,).
        delta_softplus: whether softplus is applied to the time step.
        checkpoint_lvl: accepted for compatibility; the backward pass saves memory in its own way.
        b_rms_weight: if given, B is divided by its root mean square over the states and multiplied by this, (N,).
        c_rms_weight: the same for C.
        dt_rms_weight: the same for the projected time step, over the channels, (D,).
        b_c_dt_rms_eps: added to those mean squares.

    Returns:
        The output, (B, L, C).

    Raises:
        TypeError: an argument is not a floating-point tensor, or A is complex.
        ValueError: shapes or devices do not fit together.

    Example:
        >>> import torch
        >>> from mtlkit.compat import mamba_inner_fn
        >>> D, N, R, L = 8, 4, 2, 10
        >>> xz, conv, A = torch.randn(1, 2 * D, L), torch.randn(D, 1, 4), -torch.rand(D, N)
        >>> x_proj, dt_proj, out_proj = torch.randn(R + 2 * N, D), torch.randn(D, R), torch.randn(6, D)
        >>> mamba_inner_fn(xz, conv, None, x_proj, dt_proj, out_proj, None, A).shape
        torch.Size([1, 10, 6])
    """
    rms = (b_rms_weight, c_rms_weight, dt_rms_weight, b_c_dt_rms_eps)
    projected = _project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias, rms
    )
    y = _scan(selective_scan, projected, A, D, delta_bias, delta_softplus)  # (B, D, L)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)  # (B, L, C)


def mamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn` with the scan token by token in plain PyTorch; arguments and result as there.

    Example:
        >>> import torch
        >>> from mtlkit.compat import mamba_inner_ref
        >>> weights = torch.randn(3, 8), torch.randn(8, 1), torch.randn(8, 8), None
        >>> mamba_inner_ref(torch.randn(1, 16, 5), torch.randn(8, 1, 4), None, *weights, -torch.rand(8, 1)).shape
        torch.Size([1, 5, 8])
    """
    projected = _project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    y = _scan(selective_scan_ref, projected, A, D, delta_bias, delta_softplus)  # (B, D, L)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)  # (B, L, C)


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """`mamba_inner_fn` without the output projection, as Vision Mamba calls it for each of its two directions.

    Returns:
        The gated output of the scan, (B, D, L); everything else as in `mamba_inner_fn`.

    Example:
        >>> import torch
        >>> from mtlkit.compat import mamba_inner_fn_no_out_proj
        >>> xz, conv = torch.randn(1, 16, 5), torch.randn(8, 1, 4)
        >>> mamba_inner_fn_no_out_proj(xz, conv, None, torch.randn(3, 8), torch.randn(8, 1), -torch.ones(8, 1)).shape
        torch.Size([1, 8, 5])
    """
    projected = _project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    return _scan(selective_scan, projected, A, D, delta_bias, delta_softplus)


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`mamba_inner_fn` in both directions, with one convolution and projection for both.

    A_b is the state matrix of the scan from the last token to the first, (D, N); everything else is as there.

    Example:
        >>> import torch
        >>> from mtlkit.compat import bimamba_inner_fn
        >>> weights, A = (torch.randn(3, 8), torch.randn(8, 1), torch.randn(8, 8), None), -torch.ones(8, 1)
        >>> bimamba_inner_fn(torch.randn(1, 16, 5), torch.randn(8, 1, 4), None, *weights, A, A).shape
        torch.Size([1, 5, 8])
    """
    projected = _project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    y = _scan_both(selective_scan, projected, A, A_b, D, delta_bias, delta_softplus)  # (B, D, L)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)  # (B, L, C)


def bimamba_inner_ref(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`bimamba_inner_fn` with the scans token by token in plain PyTorch; arguments and result as there.

    Example:
        >>> import torch
        >>> from mtlkit.compat import bimamba_inner_ref
        >>> weights, A = (torch.randn(3, 8), torch.randn(8, 1), torch.randn(8, 8), None), -torch.ones(8, 1)
        >>> bimamba_inner_ref(torch.randn(1, 16, 5), torch.randn(8, 1, 4), None, *weights, A, A).shape
        torch.Size([1, 5, 8])
    """
    projected = _project(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias
    )
    y = _scan_both(selective_scan_ref, projected, A, A_b, D, delta_bias, delta_softplus)  # (B, D, L)
    return F.linear(y.transpose(1, 2), out_proj_weight, out_proj_bias)  # (B, L, C)


def _scan_both(
    scan: Callable[..., Any],
    projected: tuple[Tensor, ...],
    A: Tensor,
    A_b: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    backwards = tuple(t if t.dim() == 2 else t.flip(-1) for t in projected)  # constants have no direction
    y = _scan(scan, projected, A, D, delta_bias, delta_softplus)  # (B, D, L)
    return y + _scan(scan, backwards, A_b, D, delta_bias, delta_softplus).flip(-1)


def _scan(
    scan: Callable[..., Any],
    projected: tuple[Tensor, ...],
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    x, delta, B, C, z = projected
    return scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus)


def _project(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
    rms: tuple[Any, ...] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The arguments of the scan: x (B, D, L), time step (B, D, L), B and C as given or (B, N, L), and z (B, D, L)."""
    check_tensor("xz", xz, 3)
    check_tensor("conv1d_weight", conv1d_weight, 3)
    check_tensor("x_proj_weight", x_proj_weight, 2)
    check_tensor("delta_proj_weight", delta_proj_weight, 2)
    if isinstance(A, Tensor) and A.is_complex():
        raise TypeError(f"A: expected a real tensor, got {A.dtype}; complex state spaces are not supported")
    check_tensor("A", A, 2)
    channels = conv1d_weight.shape[0]
    rank, states = delta_proj_weight.shape[1], A.shape[1]
    check_shape("xz", xz, "(B, 2 D, L)", xz.shape[0], 2 * channels, xz.shape[2])
    rows = rank + states * ((B is None) + (C is None))
    check_shape("x_proj_weight", x_proj_weight, "(R + 2 N, D), without the rows of what is given,", rows, channels)
    xz = xz.transpose(1, 2).contiguous().transpose(1, 2)  # channels side by side, which all that follows is fastest at
    x, z = xz.chunk(2, 1)  # (B, D, L) each
    u = conv_silu(x.transpose(1, 2), conv1d_weight, conv1d_bias)  # (B, L, D)
    values = F.linear(u, x_proj_weight)  # (B, L, R + 2 N)
    delta = F.linear(values[..., :rank], delta_proj_weight)  # (B, L, D)
    B = _rows(values[..., rank : rank + states], B_proj_bias) if B is None else B
    C = _rows(values[..., -states:], C_proj_bias) if C is None else C
    if rms is not None:
        *weights, eps = rms
        B = _root_mean_square("B", B, weights[0], eps)
        C = _root_mean_square("C", C, weights[1], eps)
        delta = delta if weights[2] is None else F.rms_norm(delta, delta.shape[-1:], weights[2], eps)
    return u.transpose(1, 2), delta.transpose(1, 2), B, C, z


def _rows(values: Tensor, bias: Tensor | None) -> Tensor:
    """(B, L, N) to (B, N, L)."""
    return (values if bias is None else values + bias.to(values.dtype)).transpose(1, 2)


def _root_mean_square(name: str, rows: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Over the states of (B, N, L)."""
    if weight is None:
        return rows
    check_tensor(name, rows, 3)
    return F.rms_norm(rows.transpose(1, 2), rows.shape[1:2], weight, eps).transpose(1, 2)
