"""The operators at extreme values, by the Triton kernels, interpreted: see tests/harness/extremes.py."""

import pytest

import mtlkit
from harness.extremes import Extremes


class TestTriton(Extremes):
    @pytest.fixture(autouse=True)
    def _backend(self):
        with mtlkit.use_backend("triton"):
            yield
