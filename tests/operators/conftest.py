"""Fixtures for the tests of all operators."""

import pytest
import torch._dynamo.testing  # noqa: F401 - torch 2.6 does not import it by default

from mtlkit import _native


@pytest.fixture(params=_native.C.cpu_isa_levels() if _native.C else [])
def isa(request: pytest.FixtureRequest):
    """Each instruction-set level of this machine in turn."""
    before = _native.C.cpu_isa()
    _native.C.set_cpu_isa(request.param)
    yield request.param
    _native.C.set_cpu_isa(before)
