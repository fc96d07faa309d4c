"""Every operator by its CUDA kernels, run on the host: see tests/harness/matrix.py."""

import pytest

from harness.calls import DTYPES
from harness.matrix import InMemory, OperatorMatrix
from harness.operators import GPU_OPERATORS


class TestCUDA(InMemory, OperatorMatrix):
    operators, backends, dtypes = GPU_OPERATORS, ("cuda",), DTYPES

    @pytest.fixture
    def backend(self, request: pytest.FixtureRequest, on_host) -> str:
        return request.param
