"""Fills uninitialised memory with NaN, so that elements that a kernel forgets to write are detected."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

ALLOCATORS = ((torch, ("empty", "empty_like", "empty_strided")), (Tensor, ("new_empty", "new_empty_strided")))


def _poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned_allocate(*args, **options) -> Tensor:
        tensor = allocate(*args, **options)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    return poisoned_allocate


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes all of PyTorch's uninitialised floating-point allocations contain NaN."""
    for owner, names in ALLOCATORS:
        for name in names:
            monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))
