"""The arguments of depthwise_conv2d, and the layout of its output."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit._check import check_device, check_shape, check_tensor


class Inputs(NamedTuple):
    """The tensors of `mtlkit.ops.depthwise_conv2d`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None


class Options(NamedTuple):
    """The window, with padding as (left, right, top, bottom), and whether to apply SiLU."""

    stride: int
    padding: tuple[int, ...]
    dilation: int
    silu: bool


def out_size(x: Tensor, weight: Tensor, options: Options) -> tuple[int, int]:
    """Rows and columns of the output, H' and W'."""
    left, right, top, bottom = options.padding
    reach = options.dilation * (weight.shape[-1] - 1)
    height, width = x.shape[2] + top + bottom - reach, x.shape[3] + left + right - reach
    return (height - 1) // options.stride + 1, (width - 1) // options.stride + 1


def check(inputs: Inputs, options: Options) -> None:
    """The shape rule."""
    x, weight, bias = inputs
    check_tensor("x", x, 4)
    check_tensor("weight", weight, 4)
    channels, height, width = x.shape[1:]
    if channels < 1 or height < 1 or width < 1:
        raise ValueError(f"x: expected shape (B, D, H, W) with D, H and W at least 1, got {tuple(x.shape)}")
    check_shape("weight", weight, "(D, 1, k, k)", channels, 1, weight.shape[-1], weight.shape[-1])
    if bias is not None:
        check_tensor("bias", bias, 1)
        check_shape("bias", bias, "(D,)", channels)
    check_device(x=x, weight=weight, bias=bias)
    for name in ("stride", "dilation"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}: expected a number that is at least 1, got {getattr(options, name)}")
    if len(options.padding) != 4 or min(options.padding) < 0:
        raise ValueError(f"padding: expected one number or 4, each at least 0, got {options.padding}")
    if min(out_size(x, weight, options)) < 1:
        raise ValueError(
            f"x: expected at least the {1 + options.dilation * (weight.shape[-1] - 1)} rows and columns of a window, "
            f"padding included, got shape {tuple(x.shape)} and padding {options.padding}"
        )


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels-last if x is."""
    return torch.channels_last if x.shape[1] > 1 and x.stride(1) == 1 else torch.contiguous_format


def new_map(x: Tensor, height: int, width: int) -> Tensor:
    """(B, D, height, width), uninitialised, dense, in the layout of x; also for the gradient of x."""
    size = (*x.shape[:2], height, width)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


def new_outputs(inputs: Inputs, options: Options) -> tuple[Tensor]:
    """Y, unset."""
    return (new_map(inputs.x, *out_size(inputs.x, inputs.weight, options)),)
