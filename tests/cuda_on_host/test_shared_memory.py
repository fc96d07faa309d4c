"""The shared memory of a block on each kind of GPU: kernels stay within it, or report that they cannot run."""

import pytest
import torch

import mtlkit
from mtlkit.operators.samples import samples
from mtlkit.testing import SelectiveScanShape

# for compute capability 7.5; for 8.6, 8.9 and 12.0
TURING, CONSUMER = 64 << 10, 99 << 10


@pytest.mark.parametrize("shared", [TURING, CONSUMER])
def test_every_operator_fits(on_host, kernels, shared):
    on_host(40, shared)
    for operator, calls in samples().items():
        if "cuda" not in calls[0].served:
            continue
        for sample in calls[:3]:
            before, given = kernels.launches(), sample.given(torch.float32)
            assert sample.limit("cuda", given) is None
            sample.results("cuda", given)
            assert kernels.launches() > before, operator


@pytest.mark.parametrize("states", [1, 2, 4, 8, 16, 32, 64, 128, 256])
def test_selective_scan_fits_with_any_count_of_states(on_host, states):
    on_host(1, TURING)
    for groups in (1, 0):  # B and C vary, or are constant
        inputs = SelectiveScanShape(1, 3, 5, states, G=groups).inputs()
        inputs = {name: t.requires_grad_() for name, t in inputs.items()}
        mtlkit.ops.selective_scan(**inputs).sum().backward()


def test_ss2d_of_the_models_fits(kernels):
    """16 states and a time step of rank 48, as with 768 input channels, fit Turing; consumer cards have much more."""

    def fits(states: int, rank: int, shared: int) -> bool:
        return kernels.cuda_ss2d_tiling(states=states, rank=rank, gpu=(40, shared)).states > 0

    assert all(fits(states, 48, TURING) for states in (1, 2, 4, 8, 16))
    assert not fits(16, 49, TURING)
    assert not fits(128, 1, TURING)
    assert all(fits(states, 80, CONSUMER) for states in (1, 2, 4, 8, 16, 32, 64, 128))
    assert not fits(256, 1, CONSUMER)


def test_a_launch_beyond_it_is_refused(on_host):
    on_host(1, 16 << 10)
    with pytest.raises(RuntimeError, match="no GPU runs"):
        mtlkit.ops.selective_scan(**SelectiveScanShape(1, 3, 5, 16).inputs())
