"""The formula in plain PyTorch: gather the tokens in the order of each direction, scan, scatter back."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.operators._launch import compute_dtype
from mtlkit.operators.directional_scan.orders import table_of_numbers
from mtlkit.operators.directional_scan.signature import channels_last, starts_of
from mtlkit.operators.selective_scan.reference import scan_chunked, scan_sequential


def directional_scan_reference(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The formula, one token after another: (output, last state)."""
    return _composed(scan_sequential, *arguments)


def directional_scan_torch(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The reference with the vectorised scan."""
    return _composed(scan_chunked, *arguments)


def _composed(
    scan: Callable[..., tuple[Tensor, Tensor]],
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    table: Tensor | None,
    seq_idx: Tensor | None,
    initial_state: Tensor | None,
    merge: bool,
    out_dtype: torch.dtype,
    steps: int,
    walks: Sequence[int],
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(u, x_dbl)
    directions, channels, rank = dt_weight.shape
    states, tokens = A_logs.shape[1], u.shape[-1]
    order = table_of_numbers(walks, steps, u.device) if table is None else table
    index = order.long().expand(u.shape[0], -1, -1)[:, :, None]  # (B, K, 1, T)

    def visited(v: Tensor) -> Tensor:  # (B, K, C, L) -> (B, K, C, T)
        return v.to(dtype).gather(-1, index.expand(-1, -1, v.shape[2], -1))

    us = visited(u if u.dim() == 4 else u[:, None].expand(-1, directions, -1, -1))  # (B, K, D, T)
    dts, Bs, Cs = visited(x_dbl).split((rank, states, states), 2)  # (B, K, R | N | N, T)
    raw = torch.einsum("bkrt,kdr->bkdt", dts, dt_weight.to(dtype)) + dt_bias.to(dtype)[..., None]
    dt = F.softplus(raw)  # (B, K, D, T)
    ys, last = scan(
        dt,
        dt * us,
        -torch.exp(A_logs.to(dtype)).unflatten(0, (directions, channels)),  # (K, D, N)
        Bs[:, :, None],  # (B, K, 1, N, T)
        Cs[:, :, None],
        None if initial_state is None else initial_state.to(dtype),  # (B, K, D, N)
        None if seq_idx is None else starts_of(seq_idx, order),  # (B, K, T)
    )
    ys = ys + Ds.to(dtype).view(directions, channels, 1) * us  # (B, K, D, T)
    y = ys.new_zeros(*ys.shape[:-1], tokens).scatter(-1, index.expand_as(ys), ys)  # (B, K, D, L)
    y = y.sum(1) if merge else y
    if channels_last(u):
        y = y.transpose(-1, -2).contiguous().transpose(-1, -2)
    return y.to(out_dtype), last
