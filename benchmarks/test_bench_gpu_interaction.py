"""Levels of task interaction on a GPU, beside eager PyTorch and torch.compile: `pytest benchmarks -m gpu`."""

import pytest
from gpu_levels import LevelCase, cases


@pytest.mark.gpu
@pytest.mark.parametrize("case", cases(), ids=str)
def test_gpu_task_interaction(case: LevelCase, measure_gpu) -> None:
    measure_gpu(case)
