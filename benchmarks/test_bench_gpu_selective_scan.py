"""selective_scan on a GPU, beside its peers: `pytest benchmarks -m gpu`."""

import pytest
from gpu_operators import OperatorCase, cases


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases("selective_scan"), ids=str)
def test_gpu_selective_scan(case: OperatorCase, measure_gpu) -> None:
    measure_gpu(case)
