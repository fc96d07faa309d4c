"""Task interaction: the four decoder levels at two input sizes and two batch sizes."""

import pytest
from interaction_workloads import cases


@pytest.mark.parametrize("case", cases(), ids=str)
def test_task_interaction(case, measure_case) -> None:
    measure_case(case)
