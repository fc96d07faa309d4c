"""ss2d_norm_gate, the core of an SS2D layer, compared with its two parts called one after the other."""

import pytest
from workloads import cases


@pytest.mark.parametrize("case", cases("ss2d_norm_gate"), ids=str)
def test_ss2d_norm_gate(case, measure_case) -> None:
    measure_case(case)
