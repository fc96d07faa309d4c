"""The formula in plain PyTorch: the four sequences, scanned by the 1-D operator's reference, then merged."""

from collections.abc import Callable

import torch
from torch import Tensor

from mtlkit.operators._launch import compute_dtype
from mtlkit.operators.selective_scan.reference import selective_scan_reference, selective_scan_torch
from mtlkit.operators.ss2d.orders import DIRECTIONS, cross_merge, cross_scan


def ss2d_reference(
    u: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_logs: Tensor, Ds: Tensor, out_dtype: torch.dtype
) -> Tensor:
    """The formula, one token after another."""
    return _composed(selective_scan_reference, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype)


def ss2d_torch(
    u: Tensor, x_dbl: Tensor, dt_weight: Tensor, dt_bias: Tensor, A_logs: Tensor, Ds: Tensor, out_dtype: torch.dtype
) -> Tensor:
    """The reference with the vectorised scan."""
    return _composed(selective_scan_torch, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, out_dtype)


def _composed(
    scan: Callable[..., tuple[Tensor, Tensor]],
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    out_dtype: torch.dtype,
) -> Tensor:
    dtype = compute_dtype(u, x_dbl)
    height, width = u.shape[2:]
    rank, states = dt_weight.shape[2], A_logs.shape[1]
    us = cross_scan(u.to(dtype))  # (B, 4, D, L)
    dts, Bs, Cs = cross_scan(x_dbl.to(dtype)).split((rank, states, states), 2)  # (B, 4, R | N | N, L)
    delta = torch.einsum("bkrl,kdr->bkdl", dts, dt_weight.to(dtype))  # (B, 4, D, L)
    ys, _ = scan(
        us.flatten(1, 2),  # (B, 4 D, L)
        delta.flatten(1, 2),
        -torch.exp(A_logs.to(dtype)),  # (4 D, N)
        Bs,  # (B, 4, N, L)
        Cs,
        Ds.to(dtype),
        None,
        dt_bias.to(dtype).flatten(),
        True,
    )
    y = cross_merge(ys.unflatten(1, (DIRECTIONS, -1)), height, width)  # (B, D, H, W)
    return _like_layout(y, u).to(out_dtype)


def _like_layout(y: Tensor, u: Tensor) -> Tensor:
    channels_last = u.is_contiguous(memory_format=torch.channels_last) and not u.is_contiguous()
    return y.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
