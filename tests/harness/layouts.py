"""The same numbers in memory of other orders, spacings and offsets, NaN between them."""

from collections.abc import Callable

import torch
from torch import Tensor

Place = Callable[[Tensor], Tensor]


def dense(t: Tensor) -> Tensor:
    """In the order of its dimensions."""
    return t.contiguous()


def inside(dim: int, place: Place = dense) -> Place:
    """With this dimension's elements next to each other; `place` puts them, as the last dimension."""
    return lambda t: place(t.movedim(dim, -1)).movedim(-1, dim)


def swapped(t: Tensor) -> Tensor:
    """The last two dimensions in the other order."""
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


def part(dim: int, before: int = 0, after: int = 0) -> Place:
    """A slice of a dimension that has this many more elements before and after; -1 stands for as many as there are."""

    def place(t: Tensor) -> Tensor:
        size = t.shape[dim]
        start, rest = (size if count < 0 else count for count in (before, after))
        shape = list(t.shape)
        shape[dim] = start + size + rest
        return t.new_full(shape, float("nan")).narrow(dim, start, size).copy_(t)

    return place


def spread(*dims: int) -> Place:
    """Every other element of these dimensions."""

    def place(t: Tensor) -> Tensor:
        shape, every = list(t.shape), [slice(None)] * t.dim()
        for dim in dims:
            shape[dim], every[dim] = 2 * t.shape[dim], slice(None, None, 2)
        return t.new_full(shape, float("nan"))[tuple(every)].copy_(t)

    return place


def repeated(dim: int) -> Place:
    """The first element of a dimension in place of all, in memory once: other numbers."""
    return lambda t: t.narrow(dim, 0, 1).expand_as(t)


def ones(t: Tensor) -> Tensor:
    """A single 1 for all elements: other numbers, as the gradient of a sum has them."""
    return torch.ones((), dtype=t.dtype, device=t.device).expand(t.shape)


NCHW, NHWC = dense, inside(1)
