"""The arguments of ss2d, its sizes, and the layout of its output."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit._check import check_device, check_float_dtype, check_shape, check_tensor
from mtlkit.operators.ss2d.orders import DIRECTIONS


class Inputs(NamedTuple):
    """As `mtlkit.ops.ss2d` takes them."""

    u: Tensor
    x_dbl: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A_logs: Tensor
    Ds: Tensor


class Options(NamedTuple):
    """As `mtlkit.ops.ss2d` takes them."""

    out_dtype: torch.dtype


class Sizes(NamedTuple):
    """SS2DShape of csrc/common/ss2d.h."""

    batch: int
    channels: int
    height: int
    width: int
    states: int
    rank: int


def sizes_of(inputs: Inputs) -> Sizes:
    """The sizes of a call."""
    return Sizes._make((*inputs.u.shape, inputs.A_logs.shape[1], inputs.dt_weight.shape[2]))


def check(inputs: Inputs, options: Options) -> None:
    """The shape rule."""
    u, x_dbl, dt_weight, dt_bias, A_logs, Ds, *_ = inputs
    check_tensor("u", u, 4)
    check_tensor("x_dbl", x_dbl, 5)
    check_tensor("dt_weight", dt_weight, 3)
    check_tensor("dt_bias", dt_bias, 2)
    check_tensor("A_logs", A_logs, 2)
    check_tensor("Ds", Ds, 1)
    batch, channels, height, width = u.shape
    if channels < 1 or height < 1 or width < 1:
        raise ValueError(f"u: expected shape (B, D, H, W) with D, H and W at least 1, got {tuple(u.shape)}")
    rank, states = dt_weight.shape[2], A_logs.shape[1]
    if rank < 1:
        raise ValueError(f"dt_weight: expected shape (4, D, R) with R at least 1, got {tuple(dt_weight.shape)}")
    if states < 1:
        raise ValueError(f"A_logs: expected shape (4 D, N) with N at least 1, got {tuple(A_logs.shape)}")
    check_shape("dt_weight", dt_weight, "(4, D, R)", DIRECTIONS, channels, rank)
    check_shape("dt_bias", dt_bias, "(4, D)", DIRECTIONS, channels)
    check_shape("A_logs", A_logs, "(4 D, N)", DIRECTIONS * channels, states)
    check_shape("Ds", Ds, "(4 D,)", DIRECTIONS * channels)
    check_shape("x_dbl", x_dbl, "(B, 4, R + 2 N, H, W)", batch, DIRECTIONS, rank + 2 * states, height, width)
    check_device(u=u, x_dbl=x_dbl, dt_weight=dt_weight, dt_bias=dt_bias, A_logs=A_logs, Ds=Ds)
    check_float_dtype("out_dtype", options.out_dtype)


def new_outputs(inputs: Inputs, options: Options) -> tuple[Tensor]:
    """The output in the layout of u."""
    return (torch.empty_like(inputs.u, dtype=options.out_dtype),)


def rows(x_dbl: Tensor) -> Tensor:
    """x_dbl with the values of a pixel contiguous, (B, H, W, 4, M), as the kernels read it; copied only if needed."""
    return x_dbl.permute(0, 3, 4, 1, 2).contiguous()


def from_rows(drows: Tensor) -> Tensor:
    """The gradient of x_dbl, (B, 4, M, H, W), from that of its rows."""
    return drows.permute(0, 3, 4, 1, 2)
