"""SS2D on a GPU, beside its peers: `pytest benchmarks -m gpu`, the last step of `make gpu`."""

import pytest
from gpu_workloads import GpuCase, cases


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases(), ids=str)
def test_gpu_ss2d(case: GpuCase, measure_gpu) -> None:
    measure_gpu(case)
