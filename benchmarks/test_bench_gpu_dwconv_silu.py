"""dwconv_silu on a GPU, beside its peers: `pytest benchmarks -m gpu`."""

import pytest
from gpu_operators import OperatorCase, cases


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases("dwconv_silu"), ids=str)
def test_gpu_dwconv_silu(case: OperatorCase, measure_gpu) -> None:
    measure_gpu(case)
