"""Task interaction on a GPU: levels compared with the float64 reference, the gating between passes, repeatability."""

import pytest
import torch

import mtlkit
from harness.calls import DTYPES, assert_same, level_call
from harness.gating import VECTOR_CASES, VectorCall
from harness.gating import assert_same as assert_same_numbers
from harness.layouts import NCHW, NHWC
from mtlkit.testing import InteractionShape

pytestmark = pytest.mark.gpu

FORMS = [("variance", False), ("alignment", False), ("alignment", True)]
# one pixel, one row, one column, a single channel, partly filled tiles, and levels of the networks
SHAPES = [(2, 5, 1, 1), (2, 16, 1, 9), (1, 7, 13, 1), (2, 1, 4, 5), (3, 33, 5, 7), (2, 150, 14, 14), (2, 48, 56, 56)]


@pytest.fixture(autouse=True, params=["triton", "cuda"])
def backend(request):
    with mtlkit.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("layout", [NCHW, NHWC], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("signals", "attention"), FORMS)
def test_accurate(signals, attention, dtype, layout, device):
    for sizes in SHAPES:
        shape = InteractionShape(*sizes, F=12, signals=signals, attention=attention)
        level_call(shape, dtype, layout).check(device)


@pytest.mark.parametrize("signals", ["variance", "alignment"])
def test_in_training(signals, device):
    level_call(InteractionShape(5, 48, 9, 7, 40, signals), training=True).check(device)


@pytest.mark.parametrize("case", VECTOR_CASES, ids=str)
def test_gating(case, device, backend):
    call = VectorCall(case)
    exact = call.run("torch", torch.float64)
    got = call.run(backend, torch.float32, device=device)
    assert_same_numbers({name: value.cpu() for name, value in got.items()}, exact)


def test_repeats_bit_by_bit(device):
    call = level_call(InteractionShape(8, 96, 56, 56, signals="alignment", attention=True))
    leaves = call.leaves(device)
    first = call.results(leaves)
    for _ in range(20):
        assert_same(call.results(leaves), first)
