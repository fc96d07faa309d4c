"""Tests specific to norm_gate; test_matrix.py has those that all operators share."""

import pytest
import torch

import mtlkit
from harness.calls import norm_call
from mtlkit import _native
from mtlkit.ops import norm_gate
from mtlkit.testing import assert_accurate

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")


@pytest.fixture(autouse=True)
def _cpu():
    with mtlkit.use_backend("cpu"):
        yield


def test_a_large_mean_does_not_drown_the_variance():
    call = norm_call((4, 96))
    call.inputs["x"] += 1000
    call.check()


def test_constant_rows():
    call = norm_call((5, 41))
    call.inputs["x"] = torch.tensor([1.5, -2.0, 0.0, 1e9, 1e9 / 3])[:, None].expand(5, 41)
    got = call.run()
    assert all(value.isfinite().all() for value in got.values())
    bias, z = call.inputs["bias"], call.inputs["z"]
    torch.testing.assert_close(got["y"][:3], (bias * torch.nn.functional.silu(z))[:3])


@pytest.mark.parametrize("channels", [3, 500, 1000])
def test_the_variance_of_constant_rows_is_never_below_zero(channels):
    """Rounding would make some variances of 300 large constants negative."""
    x = (torch.rand(300, 1) * 1e9).expand(300, channels)
    assert norm_gate(x, eps=1e-12).isfinite().all()


@pytest.mark.parametrize("eps", [0, 1e-12, 1e-5, 1.0])
def test_eps(eps):
    x, weight, bias, z = norm_call((7, 33)).inputs.values()
    got = norm_gate(x, weight, bias, z, eps=eps)
    with mtlkit.use_backend("reference"):
        assert_accurate("y", got, norm_gate(x.double(), weight, bias, z, eps=eps))


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_autocast_leaves_the_dtype_alone(backend):
    x, weight, bias, z = norm_call((6, 8)).inputs.values()
    with mtlkit.use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        assert norm_gate(x, weight, bias, z).dtype == torch.float32
        got = norm_gate(x.bfloat16(), weight, bias, z.bfloat16())
    assert got.dtype == torch.bfloat16
    with mtlkit.use_backend("reference"):
        exact = norm_gate(x.bfloat16().double(), weight, bias, z.bfloat16().double())
    assert (got - exact).norm() < 2e-2 * exact.norm()


BAD = {
    "x: expected a tensor, got NoneType": ({"x": None}, TypeError),
    "z: expected float32, .* got torch.complex64": ({"z": torch.ones(2, 4, dtype=torch.complex64)}, TypeError),
    r"x: expected shape \(..., D\) with D at least 1, got \(2, 0\)": ({"x": torch.ones(2, 0)}, ValueError),
    r"x: expected 1 or 2 .* dimensions, got 0": ({"x": torch.ones(())}, ValueError),
    r"weight: expected shape \(D,\) = \(4,\), got \(5,\)": ({"weight": torch.ones(5)}, ValueError),
    r"bias: expected 1 dimensions, got 2": ({"bias": torch.ones(1, 4)}, ValueError),
    r"z: expected shape .* = \(2, 4\), got \(1, 4\)": ({"z": torch.ones(1, 4)}, ValueError),
    "weight: expected device cpu, where x is, got meta": ({"weight": torch.ones(4, device="meta")}, ValueError),
    "eps: expected a number that is at least 0, got -1": ({"eps": -1}, ValueError),
    "eps: expected a number that is at least 0, got nan": ({"eps": float("nan")}, ValueError),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    change, error = BAD[message]
    arguments = {"x": torch.ones(2, 4), "weight": torch.ones(4), "bias": torch.ones(4), "z": torch.ones(2, 4)} | change
    with pytest.raises(error, match=message):
        norm_gate(**arguments)
