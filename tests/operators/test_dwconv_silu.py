"""Tests specific to dwconv_silu; test_matrix.py has those that all operators share."""

import pytest
import torch

import mtlkit
from harness.calls import conv_call
from mtlkit import _native
from mtlkit.ops import dwconv_silu

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_autocast_leaves_the_dtype_alone(backend):
    x, weight, bias = conv_call((1, 8, 4, 5)).inputs.values()
    with mtlkit.use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        assert dwconv_silu(x, weight, bias).dtype == torch.float32
        got = dwconv_silu(x.bfloat16(), weight, bias)
    assert got.dtype == torch.bfloat16
    with mtlkit.use_backend("reference"):
        exact = dwconv_silu(x.bfloat16().double(), weight.double(), bias.double())
    assert (got - exact).norm() < 2e-2 * exact.norm()


BAD = {
    "x: expected a tensor, got list": ({"x": [1.0]}, TypeError),
    "x: expected float32, .* got torch.int64": ({"x": torch.ones(1, 4, 3, 3, dtype=torch.int64)}, TypeError),
    "x: expected 4 dimensions, got 3": ({"x": torch.ones(4, 3, 3)}, ValueError),
    r"x: expected .* at least 1, got \(1, 4, 0, 3\)": ({"x": torch.ones(1, 4, 0, 3)}, ValueError),
    r"weight: expected shape \(D, 1, 3, 3\) = \(4, 1, 3, 3\), got \(4, 1, 5, 5\)": (
        {"weight": torch.ones(4, 1, 5, 5)},
        ValueError,
    ),
    r"bias: expected shape \(D,\) = \(4,\), got \(3,\)": ({"bias": torch.ones(3)}, ValueError),
    "bias: expected device cpu, where x is, got meta": ({"bias": torch.ones(4, device="meta")}, ValueError),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    change, error = BAD[message]
    arguments = {"x": torch.ones(1, 4, 3, 3), "weight": torch.ones(4, 1, 3, 3), "bias": torch.ones(4)} | change
    with pytest.raises(error, match=message):
        dwconv_silu(**arguments)
