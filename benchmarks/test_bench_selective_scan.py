"""The 1-D scan with the work of the SS2D shapes in mamba's layout: (B, 4 D, L), one group of channels per direction."""

import pytest
from workloads import cases


@pytest.mark.parametrize("case", cases("selective_scan"), ids=str)
def test_selective_scan(case, measure_case) -> None:
    measure_case(case)
