"""Fixtures that every operator's tests use."""

import pytest
import torch
import torch._dynamo.testing  # torch 2.6 does not load it by itself

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
