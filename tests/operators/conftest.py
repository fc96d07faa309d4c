"""Fixtures that every operator's tests use."""

import pytest
import torch._dynamo.testing  # noqa: F401 - torch 2.6 does not load it by itself

from mtlkit import _native


@pytest.fixture(params=_native.C.cpu_isa_levels() if _native.C else [])
def isa(request: pytest.FixtureRequest):
    """Each instruction-set level that this machine has, one after the other."""
    before = _native.C.cpu_isa()
    _native.C.set_cpu_isa(request.param)
    yield request.param
    _native.C.set_cpu_isa(before)
