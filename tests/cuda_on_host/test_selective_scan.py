import pytest
import torch

from harness.calls import assert_same, scan_call
from harness.layouts import far_apart
from mtlkit.testing import SelectiveScanShape


@pytest.mark.parametrize("multiprocessors", [4, 40])
@pytest.mark.parametrize("shape", [(2, 1), (4, 1), (16, 1), (16, 3), (16, 0), (33, 1)], ids=str)
def test_split_into_chunks(on_host, shape, multiprocessors):
    states, groups = shape
    on_host(multiprocessors)
    scan_call(SelectiveScanShape(1, 9, 777, states, G=groups)).check()


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_repeats_bit_by_bit_in_any_order(on_host, kernels, groups):
    call, results = scan_call(SelectiveScanShape(2, 40, 130, 16, G=groups)), []
    for seed in range(3):
        kernels.seed(seed)
        results.append(call.run())
    for other in results[1:]:
        assert_same(other, results[0])


def test_sequences_beyond_32_bit_offsets(on_host):
    call = scan_call(SelectiveScanShape(2, 20, 36, 16), torch.float16)
    assert_same(call.placed(u=far_apart, delta=far_apart, z=far_apart).run(), call.run())


def test_writes_every_element(on_host, poisoned):
    for shape in (
        SelectiveScanShape(1, 5, 21, 16),
        SelectiveScanShape(1, 5, 420, 4),
        SelectiveScanShape(1, 6, 21, 3, G=0),
    ):
        for multiprocessors in (1, 40):
            on_host(multiprocessors)
            scan_call(shape).check()
