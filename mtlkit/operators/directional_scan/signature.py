"""The arguments of directional_scan, its sizes, and the layout of its results."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit._check import check_device, check_float_dtype, check_shape, check_tensor
from mtlkit.operators._launch import compute_dtype
from mtlkit.operators._operator import traced
from mtlkit.operators.directional_scan.orders import (
    ScanOrder,
    check_steps,
    check_table,
    check_visits,
    table_of_numbers,
)


class Inputs(NamedTuple):
    """The tensors of `mtlkit.ops.directional_scan`; `table` is the order, None if the options have it as walks."""

    u: Tensor
    x_dbl: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A_logs: Tensor
    Ds: Tensor
    table: Tensor | None  # (K, T) or (B, K, T), int32, contiguous
    seq_idx: Tensor | None  # (B, L), int32, contiguous
    initial_state: Tensor | None


INDICES = ("table", "seq_idx")


class Options(NamedTuple):
    """The options of `mtlkit.ops.directional_scan`.

    `walks` holds the four numbers of the `Walk` of each direction; it is empty if there is a table.
    """

    merge: bool
    out_dtype: torch.dtype
    steps: int
    walks: tuple[int, ...]


class Sizes(NamedTuple):
    """DirectionalScanShape of csrc/common/directional_scan.h."""

    batch: int
    directions: int
    channels: int
    tokens: int
    steps: int
    states: int
    rank: int


def sizes_of(inputs: Inputs, options: Options) -> Sizes:
    """The sizes of a call."""
    batch, channels, tokens = inputs.u.shape[0], *inputs.u.shape[-2:]
    directions, _, rank = inputs.dt_weight.shape
    return Sizes(batch, directions, channels, tokens, options.steps, inputs.A_logs.shape[1], rank)


# --- arguments
# --------------------------------------------------------------------------------------------------------


def _readable(tensor: Tensor) -> bool:
    """Whether the values of a tensor can be read: no graph is being traced or captured."""
    if traced((tensor,)) or tensor.device.type == "meta":
        return False
    return tensor.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def order_of(order: ScanOrder | Tensor, u: Tensor) -> tuple[Tensor | None, int, tuple[int, ...]]:
    """The table, the number of steps and the walks of an order for the tokens of u."""
    tokens = u.shape[-1]
    if isinstance(order, ScanOrder):
        if order.tokens != tokens:
            raise ValueError(
                f"order: expected one of L = {tokens} tokens, as u has, got {order.name} of {order.tokens}"
            )
        if order.walks is not None:
            return None, order.steps, order.numbers
        return order.table(u.device).contiguous(), order.steps, ()
    if not isinstance(order, Tensor):
        raise TypeError(
            f"order: expected a ScanOrder of mtlkit.ops.orders or an integer tensor, got {type(order).__name__}"
        )
    check_table("order", order)
    check_steps("order", order.shape[-1], tokens)
    check_device(u=u, order=order)
    if _readable(order):
        check_visits("order", order, tokens)
    return order.to(torch.int32).contiguous(), order.shape[-1], ()


def sequences_of(seq_idx: Tensor | None, cu_seqlens: Tensor | None, u: Tensor) -> Tensor | None:
    """The sequence of each token, (B, L) in int32, from seq_idx or cu_seqlens."""
    if seq_idx is not None and cu_seqlens is not None:
        raise ValueError("cu_seqlens: expected None where seq_idx is given, got both")
    batch, tokens = u.shape[0], u.shape[-1]
    if seq_idx is not None:
        _check_integers("seq_idx", seq_idx)
        check_shape("seq_idx", seq_idx, "(B, L)", batch, tokens)
        check_device(u=u, seq_idx=seq_idx)
        return seq_idx.to(torch.int32).contiguous()
    if cu_seqlens is None:
        return None
    _check_integers("cu_seqlens", cu_seqlens)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(f"cu_seqlens: expected shape (S + 1,) with S at least 1, got {tuple(cu_seqlens.shape)}")
    if batch != 1:
        raise ValueError(f"cu_seqlens: expected u with a batch of 1, got {batch}")
    check_device(u=u, cu_seqlens=cu_seqlens)
    if _readable(cu_seqlens):
        bounds = cu_seqlens.tolist()
        if bounds[0] != 0 or bounds[-1] != tokens or bounds != sorted(bounds):
            raise ValueError(f"cu_seqlens: expected bounds that increase from 0 to L = {tokens}, got {bounds}")
    positions = torch.arange(tokens, device=u.device, dtype=cu_seqlens.dtype)
    return torch.bucketize(positions, cu_seqlens[1:], right=True).to(torch.int32)[None]


def _check_integers(name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: expected int32 or int64, got {value.dtype}")


def check_input(u: Tensor) -> None:
    """Raises unless u is (B, D, L) or (B, K, D, L)."""
    check_tensor("u", u, (3, 4))
    if min(u.shape[1:]) < 1:
        raise ValueError(
            f"u: expected shape (B, D, L) or (B, K, D, L) with K, D and L at least 1, got {tuple(u.shape)}"
        )


def check(inputs: Inputs, options: Options) -> None:
    """The shape rule."""
    u, x_dbl, dt_weight, dt_bias, A_logs, Ds, table, seq_idx, initial_state = inputs
    check_input(u)
    check_tensor("x_dbl", x_dbl, 4)
    check_tensor("dt_weight", dt_weight, 3)
    check_tensor("dt_bias", dt_bias, 2)
    check_tensor("A_logs", A_logs, 2)
    check_tensor("Ds", Ds, 1)
    batch, channels, tokens = u.shape[0], *u.shape[-2:]
    directions = len(options.walks) // 4 if table is None else table.shape[-2]
    rank, states = dt_weight.shape[2], A_logs.shape[1]
    if rank < 1:
        raise ValueError(f"dt_weight: expected shape (K, D, R) with R at least 1, got {tuple(dt_weight.shape)}")
    if states < 1:
        raise ValueError(f"A_logs: expected shape (K D, N) with N at least 1, got {tuple(A_logs.shape)}")
    if table is not None and table.dim() == 3:
        check_shape("order", table, "(B, K, T)", batch, directions, options.steps)
    check_shape("dt_weight", dt_weight, "(K, D, R)", directions, channels, rank)
    if u.dim() == 4:
        check_shape("u", u, "(B, K, D, L)", batch, directions, channels, tokens)
    check_shape("dt_bias", dt_bias, "(K, D)", directions, channels)
    check_shape("A_logs", A_logs, "(K D, N)", directions * channels, states)
    check_shape("Ds", Ds, "(K D,)", directions * channels)
    check_shape("x_dbl", x_dbl, "(B, K, R + 2 N, L)", batch, directions, rank + 2 * states, tokens)
    if initial_state is not None:
        check_tensor("initial_state", initial_state, 4)
        check_shape("initial_state", initial_state, "(B, K, D, N)", batch, directions, channels, states)
    check_device(
        u=u,
        x_dbl=x_dbl,
        dt_weight=dt_weight,
        dt_bias=dt_bias,
        A_logs=A_logs,
        Ds=Ds,
        order=table,
        seq_idx=seq_idx,
        initial_state=initial_state,
    )
    check_float_dtype("out_dtype", options.out_dtype)


# --- shared by the backends
# -------------------------------------------------------------------------------------------


def dtype_of(inputs: Inputs) -> torch.dtype:
    """The dtype of the computation and of the last state."""
    return compute_dtype(inputs.u, inputs.x_dbl)


def channels_last(u: Tensor) -> bool:
    """Whether the channels of a token are contiguous."""
    return u.shape[-2] > 1 and u.stride(-2) == 1


def new_outputs(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor]:
    """The output in the layout of u, and the last state, (B, K, D, N)."""
    u = inputs.u
    directions, channels, _ = inputs.dt_weight.shape
    last = u.new_empty((u.shape[0], directions, channels, inputs.A_logs.shape[1]), dtype=dtype_of(inputs))
    if u.dim() == (3 if options.merge else 4):
        return torch.empty_like(u, dtype=options.out_dtype), last
    outer = (u.shape[0],) if options.merge else (u.shape[0], directions)
    if channels_last(u):
        out = u.new_empty((*outer, u.shape[-1], channels), dtype=options.out_dtype).transpose(-1, -2)
    else:
        out = u.new_empty((*outer, channels, u.shape[-1]), dtype=options.out_dtype)
    return out, last


def table_of(inputs: Inputs, options: Options) -> Tensor:
    """The order as a table on the device of u, for backends that do not support walks."""
    if inputs.table is not None:
        return inputs.table
    if traced(inputs):
        return table_of_numbers(options.walks, options.steps, inputs.u.device)
    return _kept_table(tuple(options.walks), options.steps, inputs.u.device)


@lru_cache(maxsize=64)
def _kept_table(numbers: tuple[int, ...], steps: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return table_of_numbers(numbers, steps, device)


def starts_of(seq_idx: Tensor, table: Tensor) -> Tensor:
    """The steps at which a new sequence starts and the state is zero, (B, K, T), from sequences (B, L) and a table."""
    batch, directions = seq_idx.shape[0], table.shape[-2]
    index = table.long().expand(batch, -1, -1)  # (B, K, T)
    visited = seq_idx[:, None].expand(-1, directions, -1).gather(-1, index)  # (B, K, T)
    changes = visited[..., 1:] != visited[..., :-1]
    return torch.cat((changes.new_zeros(batch, directions, 1), changes), -1)


def rows(x_dbl: Tensor) -> Tensor:
    """x_dbl with the values of a token contiguous, (B, L, K, M), as the kernels read it; copied only if needed."""
    return x_dbl.permute(0, 3, 1, 2).contiguous()


def from_rows(drows: Tensor) -> Tensor:
    """The gradient of x_dbl, (B, K, M, L), from that of its rows."""
    return drows.permute(0, 2, 3, 1)
