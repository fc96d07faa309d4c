"""Every operator on the GPU backends: see tests/harness/matrix.py."""

from dataclasses import replace

import pytest
import torch

import mtlkit
from harness.calls import DTYPES
from harness.matrix import OperatorMatrix
from harness.operators import GPU_OPERATORS, NAN

pytestmark = pytest.mark.gpu


class TestGPU(OperatorMatrix):
    operators = tuple(
        replace(operator, spoilt=dict.fromkeys(list(operator.spoilt)[:1], (NAN,))) for operator in GPU_OPERATORS
    )
    backends, dtypes = ("cuda", "triton"), DTYPES

    @pytest.fixture
    def backend(self, request: pytest.FixtureRequest):
        if request.param == "cuda" and torch.version.hip is not None:
            pytest.skip("the CUDA kernels are for NVIDIA GPUs")
        with mtlkit.use_backend(request.param):
            yield request.param
