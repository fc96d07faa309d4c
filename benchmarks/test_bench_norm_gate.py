"""norm_gate, compared with PyTorch's normalisation and activation."""

import pytest
from workloads import cases


@pytest.mark.parametrize("case", cases("norm_gate"), ids=str)
def test_norm_gate(case, measure_case) -> None:
    measure_case(case)
