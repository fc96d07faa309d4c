"""The complete SS2D layer at 56 x 56."""

import pytest
from workloads import cases


@pytest.mark.parametrize("case", cases("ss2d_layer"), ids=str)
def test_ss2d_layer(case, measure_case) -> None:
    measure_case(case)
