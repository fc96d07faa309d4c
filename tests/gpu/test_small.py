"""Every operator once, at a small size: `make gpu` runs this under compute-sanitizer."""

import pytest
import torch

from harness.calls import DTYPES, NAMES, level_call, one_of_each
from mtlkit.testing import InteractionShape

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_accurate(name, dtype, backend, device):
    one_of_each(dtype)[name].check(device)
    torch.cuda.synchronize()


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize(("signals", "attention"), [("variance", False), ("alignment", False), ("alignment", True)])
def test_interaction(signals, attention, dtype, backend, device):
    level_call(InteractionShape(2, 20, 7, 9, 12, signals, attention), dtype).check(device)
    torch.cuda.synchronize()
