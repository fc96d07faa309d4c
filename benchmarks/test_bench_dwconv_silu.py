"""dwconv_silu, compared with PyTorch's convolution and activation."""

import pytest
from workloads import cases


@pytest.mark.parametrize("case", cases("dwconv_silu"), ids=str)
def test_dwconv_silu(case, measure_case) -> None:
    measure_case(case)
