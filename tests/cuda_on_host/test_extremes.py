"""The operators at extreme values, by the CUDA kernels run on the host: see tests/harness/extremes.py."""

import pytest

from harness.extremes import Rounding


class TestCUDA(Rounding):
    @pytest.fixture(autouse=True)
    def _backend(self, on_host):
        pass
