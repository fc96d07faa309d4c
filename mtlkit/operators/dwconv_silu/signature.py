"""The arguments of dwconv_silu, and the layout of its output."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit._check import check_device, check_shape, check_tensor
from mtlkit.operators._operator import NoOptions

TAPS = 3


class Inputs(NamedTuple):
    """The tensors of `mtlkit.ops.dwconv_silu`."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None


def check(inputs: Inputs, _: NoOptions) -> None:
    """The shape rule."""
    x, weight, bias = inputs
    check_tensor("x", x, 4)
    check_tensor("weight", weight, 4)
    channels, height, width = x.shape[1:]
    if channels < 1 or height < 1 or width < 1:
        raise ValueError(f"x: expected shape (B, D, H, W) with D, H and W at least 1, got {tuple(x.shape)}")
    check_shape("weight", weight, "(D, 1, 3, 3)", channels, 1, TAPS, TAPS)
    if bias is not None:
        check_tensor("bias", bias, 1)
        check_shape("bias", bias, "(D,)", channels)
    check_device(x=x, weight=weight, bias=bias)


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels-last if x is."""
    return torch.channels_last if x.shape[1] > 1 and x.stride(1) == 1 else torch.contiguous_format


def new_output(x: Tensor) -> Tensor:
    """Dense, in the layout of x; also for the gradient of x."""
    return torch.empty_like(x, memory_format=memory_format(x))
