"""What norm_gate is given, and the layout of what it returns."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit._check import check_device, check_shape, check_tensor


class Inputs(NamedTuple):
    """As `mtlkit.ops.norm_gate` has them."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    z: Tensor | None


class Options(NamedTuple):
    """As `mtlkit.ops.norm_gate` has them."""

    eps: float


def check(inputs: Inputs, options: Options) -> None:
    """The shape rule."""
    x, weight, bias, z = inputs
    check_tensor("x", x, tuple(range(1, 9)))
    channels = x.shape[-1]
    if channels < 1:
        raise ValueError(f"x: expected shape (..., D) with D at least 1, got {tuple(x.shape)}")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            check_tensor(name, vector, 1)
            check_shape(name, vector, "(D,)", channels)
    if z is not None:
        check_tensor("z", z, x.dim())
        check_shape("z", z, "(..., D), that of x,", *x.shape)
    check_device(x=x, weight=weight, bias=bias, z=z)
    if not isinstance(options.eps, int | float) or not options.eps >= 0:
        raise ValueError(f"eps: expected a number that is at least 0, got {options.eps!r}")


def new_output(x: Tensor) -> Tensor:
    """Contiguous; also for the gradients of x and z."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def rows(t: Tensor | None) -> Tensor | None:
    """(rows, D) with the channels side by side, as the kernels read it; no copy where strides allow."""
    if t is None:
        return None
    t = t.reshape(-1, t.shape[-1])
    return t if t.stride(1) == 1 else t.contiguous()
