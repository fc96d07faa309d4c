"""Memory that is allocated unset holds NaN, so that an element that a kernel forgets to write shows."""

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
    """Has every allocation of PyTorch that sets nothing fill floating-point tensors with NaN."""
    for owner, names in ALLOCATORS:
        for name in names:
            monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))
