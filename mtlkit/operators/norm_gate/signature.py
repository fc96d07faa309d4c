"""The arguments of norm_gate, and the layout of its output."""

from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor

from mtlkit._check import check_device, check_shape, check_tensor


class Inputs(NamedTuple):
    """As `mtlkit.ops.norm_gate` takes them."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    z: Tensor | None


class Options(NamedTuple):
    """As `mtlkit.ops.norm_gate` takes them."""

    eps: float


def check(inputs: Inputs, options: Options) -> None:
    """The shape rule."""
    x, weight, bias, z = inputs
    check_tensor("x", x, tuple(range(1, 9)))
    channels = x.shape[-1]
    if channels < 1:
        raise ValueError(f"x: expected shape (..., D) with D at least 1, got {tuple(x.shape)}")
    check_parameters(x.shape, weight, bias, z, options.eps)
    check_device(x=x, weight=weight, bias=bias, z=z)


def check_parameters(
    shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, z: Tensor | None, eps: object
) -> None:
    """The shape rule of everything except x, whose shape is given."""
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            check_tensor(name, vector, 1)
            check_shape(name, vector, "(D,)", shape[-1])
    if z is not None:
        check_tensor("z", z, len(shape))
        check_shape("z", z, "(..., D), that of x,", *shape)
    if not isinstance(eps, (int, float)) or not eps >= 0:
        raise ValueError(f"eps: expected a number that is at least 0, got {eps!r}")


def new_output(x: Tensor) -> Tensor:
    """Contiguous; also for the gradients of x and z."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@overload
def rows(t: Tensor) -> Tensor: ...
@overload
def rows(t: Tensor | None) -> Tensor | None: ...
def rows(t: Tensor | None) -> Tensor | None:
    """(rows, D) with contiguous channels, as the kernels read it; copied only if the strides require it."""
    if t is None:
        return None
    t = t.reshape(-1, t.shape[-1])
    return t if t.stride(1) == 1 else t.contiguous()
