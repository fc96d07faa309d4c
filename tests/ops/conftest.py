"""Fixtures that every operator's tests use."""

import pytest
import torch

from mtlkit import _native


@pytest.fixture(params=_native.C.cpu_isa_levels() if _native.C else [])
def isa(request: pytest.FixtureRequest):
    """Each instruction-set level that this machine has, one after the other."""
    before = _native.C.cpu_isa()
    _native.C.set_cpu_isa(request.param)
    yield request.param
    _native.C.set_cpu_isa(before)


@pytest.fixture
def threads():
    """A setter of the thread count, undone at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills whatever is allocated unset with NaN, so that an element that a kernel forgets shows."""

    def poison(allocate):
        def poisoned_allocate(*args, **options):
            tensor = allocate(*args, **options)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return poisoned_allocate

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
