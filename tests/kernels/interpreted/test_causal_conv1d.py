"""The Triton kernels of causal_conv1d, interpreted: tests in addition to the operator matrix."""

import pytest
import torch

import mtlkit
from harness.calls import assert_same, causal_conv_call
from harness.layouts import NCHW, NHWC
from harness.sequences import check_sequences
from mtlkit.kernels import causal_conv1d


@pytest.mark.parametrize(
    ("width", "dtype", "place", "activation"),
    [
        (2, torch.float32, NCHW, None),
        (3, torch.float32, NHWC, "silu"),
        (4, torch.float32, NCHW, "silu"),
        (4, torch.bfloat16, NHWC, "silu"),
    ],
)
def test_sequences(width, dtype, place, activation):
    with mtlkit.use_backend("triton"):
        check_sequences(5, width, dtype, place, activation)


def test_tiles_and_runs_decide_the_speed_alone(monkeypatch):
    """Several tiles per run, several runs, and separate tiles for initial states; repeats are bitwise equal."""
    call = causal_conv_call((2, 5, 13))
    with mtlkit.use_backend("triton"):
        for tiles, processors in (((2, 4, 1), 1), ((8, 2, 1), 132)):
            monkeypatch.setattr(causal_conv1d, "pixel_tiles", lambda _, tiles=tiles: tiles)
            monkeypatch.setattr(causal_conv1d, "processors", lambda _, count=processors: count)
            assert_same(call.check(), call.run())
