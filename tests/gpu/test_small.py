"""Every operator once, small: what `make gpu` runs under compute-sanitizer."""

import pytest
import torch
from gpu_calls import DTYPES, NAMES, one_of_each

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("_poisoned")]


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_accurate(name, dtype, backend, device):
    one_of_each(dtype)[name].check(device)
    torch.cuda.synchronize()
