"""ss2d at every named shape."""

import pytest
from workloads import cases


@pytest.mark.parametrize("case", cases("ss2d"), ids=str)
def test_ss2d(case, measure_case) -> None:
    measure_case(case)
