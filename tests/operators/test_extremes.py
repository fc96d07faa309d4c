"""The operators at extreme values, by the C++ kernels at every instruction set: see tests/harness/extremes.py."""

import pytest
import torch

import mtlkit
from harness.extremes import Rounding
from harness.matrix import OnCPU
from mtlkit import _native


@pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")
class TestCompiled(Rounding):
    dtypes, levels = (torch.float32, torch.float64), OnCPU.levels

    @pytest.fixture(autouse=True)
    def _backend(self):
        with mtlkit.use_backend("cpu"):
            yield
