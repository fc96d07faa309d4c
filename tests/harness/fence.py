"""Memory between two inaccessible pages: any access past a tensor's end crashes the process.

pytest's faulthandler then prints the test and the line.
"""

import ctypes
import mmap
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.layouts import extent
from harness.poison import ALLOCATORS

PAGE = mmap.PAGESIZE
NO_ACCESS = 0  # PROT_NONE
_libc = ctypes.CDLL(None, use_errno=True)


def _memory(size: int, at_end: bool) -> Tensor:
    """Memory between the two pages, next to the last or the first page."""
    inside = -(-size // PAGE) * PAGE
    memory = torch.frombuffer(mmap.mmap(-1, inside + 2 * PAGE), dtype=torch.uint8)
    for page in (memory.data_ptr(), memory.data_ptr() + PAGE + inside):
        if _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), NO_ACCESS):
            raise OSError(ctypes.get_errno(), "mprotect failed")
    return memory.narrow(0, PAGE + (inside - size if at_end else 0), size)


def _fenced(t: Tensor, at_end: bool) -> Tensor:
    if t.numel() == 0 or t.device.type != "cpu":
        return t
    memory = _memory(extent(t) * t.element_size(), at_end).view(t.dtype)
    if t.is_floating_point():
        memory.fill_(float("nan"))
    return memory.as_strided(t.shape, t.stride()).copy_(t)


def before_a_fence(t: Tensor) -> Tensor:
    """Memory that ends where an inaccessible page begins."""
    return _fenced(t, at_end=True)


def after_a_fence(t: Tensor) -> Tensor:
    """Memory that begins where an inaccessible page ends."""
    return _fenced(t, at_end=False)


FENCES = {"end": before_a_fence, "start": after_a_fence}
ZEROED = ((torch, ("zeros", "zeros_like")), (Tensor, ("new_zeros",)))


def fence(monkeypatch: pytest.MonkeyPatch, place: Callable[[Tensor], Tensor]) -> None:
    """Makes PyTorch allocate tensors next to a fence, initialised with NaN."""

    def fenced(allocate: Callable[..., Tensor], unset: bool) -> Callable[..., Tensor]:
        def fenced_allocate(*args, **options) -> Tensor:
            tensor = allocate(*args, **options)
            if unset and tensor.is_floating_point():
                tensor.fill_(float("nan"))
            return place(tensor)

        return fenced_allocate

    for owners, unset in ((ALLOCATORS, True), (ZEROED, False)):
        for owner, names in owners:
            for name in names:
                monkeypatch.setattr(owner, name, fenced(getattr(owner, name), unset))
