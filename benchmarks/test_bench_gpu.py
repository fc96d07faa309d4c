"""Operators and networks on a GPU, compared with peers: `pytest benchmarks -m gpu`, in the stages of `make gpu`."""

from typing import Any

import gpu_levels
import gpu_networks
import gpu_operators
import gpu_workloads
import pytest

CASES = [
    *gpu_workloads.cases(),
    *(case for op in gpu_operators.OPERATORS for case in gpu_operators.cases(op)),
    *gpu_levels.cases(),
    *gpu_networks.cases(),
]


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gpu(case: Any, measure_gpu) -> None:
    measure_gpu(case)
