"""The CUDA kernels of causal_conv1d, run on the host: tests in addition to the operator matrix."""

import pytest
import torch

from harness.calls import assert_same, causal_conv_call
from harness.layouts import NCHW, NHWC, far_apart
from harness.sequences import check_sequences


@pytest.mark.parametrize("channels", [1, 6, 36])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("place", [NCHW, NHWC], ids=["tokens inside", "channels inside"])
@pytest.mark.parametrize(("width", "activation"), [(2, None), (3, "silu"), (4, "silu")])
def test_sequences(on_host, poisoned, width, activation, place, dtype, channels):
    check_sequences(channels, width, dtype, place, activation)


@pytest.mark.parametrize("place", [NCHW, NHWC], ids=["tokens inside", "channels inside"])
@pytest.mark.parametrize("multiprocessors", [1, 40])
def test_repeats_bit_by_bit_in_any_order(on_host, kernels, place, multiprocessors):
    """Several sequences in one block, and parts of one run and of many."""
    on_host(multiprocessors)
    call, results = causal_conv_call((5, 40, 100), 4, torch.float32, place), []
    for seed in range(3):
        kernels.seed(seed)
        results.append(call.check())
    for other in results[1:]:
        assert_same(other, results[0])


def test_sequences_beyond_32_bit_offsets(on_host):
    call = causal_conv_call((2, 20, 36), 4, torch.float16)
    call.placed(x=far_apart).check()
