"""norm_gate on a GPU, beside its peers: `pytest benchmarks -m gpu`."""

import pytest
from gpu_operators import OperatorCase, cases


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases("norm_gate"), ids=str)
def test_gpu_norm_gate(case: OperatorCase, measure_gpu) -> None:
    measure_gpu(case)
