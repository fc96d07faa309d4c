"""The same values with other orders, spacings and offsets in memory, with NaN in between."""

import mmap
from collections.abc import Callable

import torch
from torch import Tensor

Place = Callable[[Tensor], Tensor]


def kept(t: Tensor) -> Tensor:
    """Unchanged."""
    return t


def chained(first: Place, then: Place) -> Place:
    """Applies one layout after the other."""
    return lambda t: then(first(t))


def as_in(other: Tensor) -> Place:
    """The memory format of another tensor."""
    return lambda t: torch.empty_like(other, dtype=t.dtype).copy_(t)


def dense(t: Tensor) -> Tensor:
    """Contiguous."""
    return t.contiguous()


def inside(dim: int, place: Place = dense) -> Place:
    """This dimension is innermost; `place` lays it out as the last dimension."""
    return lambda t: place(t.movedim(dim, -1)).movedim(-1, dim)


def swapped(t: Tensor) -> Tensor:
    """The last two dimensions are swapped in memory."""
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


def part(dim: int, before: int = 0, after: int = 0) -> Place:
    """A slice of a dimension with this many more elements before and after; -1 means as many as the tensor has."""

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


def cropped(t: Tensor) -> Tensor:
    """The inside of a tensor that is one element longer at both ends of every dimension."""
    around = t.new_full([size + 2 for size in t.shape], float("nan"))
    return around[(slice(1, -1),) * t.dim()].copy_(t)


def reversed_order(t: Tensor) -> Tensor:
    """The first dimension is innermost, the last outermost."""
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


def rearrangements(t: Tensor) -> dict[str, Place]:
    """One layout of each kind: each dimension innermost, spaced, cropped."""
    every = range(t.dim())
    found = {f"{d} inside": inside(d) for d in every}
    return found | {"reversed": reversed_order, "spread": spread(*every), "cropped": cropped}


def repeated(dim: int) -> Place:
    """The first element of a dimension, expanded: other values."""
    return lambda t: t.narrow(dim, 0, 1).expand_as(t)


def extent(t: Tensor) -> int:
    """The memory from the first element of a tensor to its last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))


def shifted(t: Tensor) -> Tensor:
    """Moved by one element, with the same strides: only loads of single elements are aligned."""
    return t.new_full((extent(t) + 1,), float("nan"))[1:].as_strided(t.shape, t.stride()).copy_(t)


def gapped(dim: int | None = None) -> Place:
    """Strides are multiples of 16 elements, except for the innermost dimension; that of `dim` is one element more."""

    def place(t: Tensor) -> Tensor:
        strides, block = [0] * t.dim(), 1
        for d in sorted(range(t.dim()), key=lambda d: (t.stride(d), -d)):
            strides[d] = block + (d == dim)
            block = strides[d] * t.shape[d]
            block += -block % 16
        return t.new_full((block,), float("nan")).as_strided(t.shape, strides).copy_(t)

    return place


def misalignments(t: Tensor) -> dict[str, Place]:
    """Layouts that keep the order of a tensor's dimensions and prevent packed loads of some or all of it."""
    outer = [d for d in range(t.dim()) if t.shape[d] > 1 and t.stride(d) > 1]
    return {"address": shifted, "sizes": gapped()} | {f"stride {d}": gapped(d) for d in outer}


def ones(t: Tensor) -> Tensor:
    """A single 1, expanded: other values, like the gradient of a sum."""
    return torch.ones((), dtype=t.dtype, device=t.device).expand(t.shape)


def far_apart(t: Tensor) -> Tensor:
    """Places the first dimension in steps of more than 2^31 elements, in memory that is never touched in between."""
    offset = 2**31 + 64
    size = (offset * (t.shape[0] - 1) + t[0].numel()) * t.element_size()
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0))
    strides = (offset, *torch.empty(t.shape[1:], device="meta").stride())
    return torch.frombuffer(memory, dtype=t.dtype).as_strided(t.shape, strides).copy_(t)


NCHW, NHWC = dense, inside(1)
