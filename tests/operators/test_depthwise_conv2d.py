"""Tests specific to depthwise_conv2d; test_matrix.py has those that all operators share."""

import pytest
import torch
import torch.nn.functional as F

import mtlkit
from harness.calls import depthwise_call
from mtlkit import _native
from mtlkit.ops import depthwise_conv2d
from mtlkit.testing import assert_accurate

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")

OTHER_WINDOWS = (
    (1, {}),
    (4, {"padding": (1, 2, 1, 2)}),
    (9, {}),
    (3, {"stride": 3}),
    (3, {"stride": 2, "dilation": 2}),
    (3, {"padding": 4}),
)


@pytest.mark.parametrize(("kernel", "options"), OTHER_WINDOWS, ids=str)
def test_windows_without_a_kernel_go_to_torch(kernel, options):
    call = depthwise_call((2, 5, 9, 8), kernel, torch.float64, **options)
    got = call.function(**call.inputs)["y"]
    with mtlkit.use_backend("reference"):
        assert torch.allclose(got, call.function(**call.inputs)["y"], rtol=1e-12)
    with mtlkit.use_backend("cpu"), pytest.raises(ValueError, match="cannot run depthwise_conv2d: it "):
        call.function(**call.inputs)


def test_default_padding_keeps_the_size():
    x, weight, bias = depthwise_call((1, 6, 7, 9), 5).inputs.values()
    exact = F.conv2d(x, weight, bias, padding=4, dilation=2, groups=6)
    assert depthwise_conv2d(x, weight, bias, dilation=2).shape == x.shape
    assert torch.allclose(depthwise_conv2d(x, weight, bias, dilation=2), exact, atol=1e-5)


@pytest.mark.parametrize("wanted", [("x",), ("weight",), ("bias",), ("weight", "bias")], ids="+".join)
def test_gradients_that_are_wanted_are_those_of_all(wanted):
    call = depthwise_call((2, 6, 9, 8), 3, stride=2, activation="silu")
    found = []
    for names in (wanted, ("x", "weight", "bias")):
        leaves = {name: t.detach().requires_grad_(name in names) for name, t in call.inputs.items()}
        depthwise_conv2d(**leaves, stride=2, activation="silu").sum().backward()
        found.append({name: leaves[name].grad for name in call.inputs})
    assert all(torch.equal(found[0][name], found[1][name]) for name in wanted)
    assert all(found[0][name] is None for name in call.inputs if name not in wanted)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [32, 40])
def test_gradients_of_maps_beyond_the_caches(isa, channels, stride):
    """Such maps are prefetched, and dx is written past the caches if its vectors are aligned."""
    call = depthwise_call((1, channels, 200, 190), 3, stride=stride)
    gradients = []
    for backend, dtype in (("cpu", torch.float32), ("torch", torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in call.inputs.values()]
        x = leaves[0].to(memory_format=torch.channels_last)
        with mtlkit.use_backend(backend):
            y = depthwise_conv2d(x, *leaves[1:], stride=stride)
        gradients.append(torch.autograd.grad(y, leaves, torch.cos(y.detach())))
    for name, got, exact in zip(call.inputs, *gradients, strict=True):
        assert_accurate(name, got, exact, gradient=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silu_is_that_of_dwconv_silu(dtype):
    x, weight, bias = depthwise_call((2, 21, 7, 6), 3, dtype).inputs.values()
    assert torch.equal(depthwise_conv2d(x, weight, bias, activation="silu"), mtlkit.ops.dwconv_silu(x, weight, bias))


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 3}, {"padding": (0, 6, 2, 1)}], ids=str)
@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_maps_read_in_place_give_what_packed_ones_do(kernel, options):
    """Channels-last maps are read in place: runs of pixels of every length, and channels after the last vector."""
    options = {"padding": options.get("dilation", 1) * (kernel - 1) // 2 + 1} | options
    for channels, width in ((21, 1), (16, 5), (35, 15), (37, 23)):
        found = []
        for layout in (torch.channels_last, torch.contiguous_format):
            leaves = [t.requires_grad_() for t in depthwise_call((2, channels, 9, width), kernel).inputs.values()]
            y = depthwise_conv2d(leaves[0].contiguous(memory_format=layout), *leaves[1:], **options)
            dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=layout)
            found.append((y, *torch.autograd.grad(y, leaves, dy)))
        for got, wanted in zip(*found, strict=True):
            rounding = 5e-7 * float(wanted.detach().abs().max())  # gradients of the filter are sums of 400 products
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=max(1e-5, rounding))


BAD = {
    "x: expected a tensor, got list": ({"x": [1.0]}, TypeError),
    "x: expected 4 dimensions, got 3": ({"x": torch.ones(4, 3, 3)}, ValueError),
    r"x: expected .* at least 1, got \(1, 4, 0, 3\)": ({"x": torch.ones(1, 4, 0, 3)}, ValueError),
    r"weight: expected shape \(D, 1, k, k\) = \(4, 1, 3, 3\), got \(4, 1, 5, 3\)": (
        {"weight": torch.ones(4, 1, 5, 3)},
        ValueError,
    ),
    r"bias: expected shape \(D,\) = \(4,\), got \(3,\)": ({"bias": torch.ones(3)}, ValueError),
    "bias: expected device cpu, where x is, got meta": ({"bias": torch.ones(4, device="meta")}, ValueError),
    "stride: expected a number that is at least 1, got 0": ({"stride": 0}, ValueError),
    "dilation: expected a number that is at least 1, got 0": ({"dilation": 0, "padding": 1}, ValueError),
    "padding: expected one number or 4, each at least 0": ({"padding": -1}, ValueError),
    "padding: expected .* each at least 0, got": ({"padding": (1, 1)}, ValueError),
    "x: expected at least the 3 rows and columns of a window": (
        {"padding": 0, "x": torch.ones(1, 4, 2, 9)},
        ValueError,
    ),
    "activation: expected one of None, 'silu', got 'relu'": ({"activation": "relu"}, ValueError),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    change, error = BAD[message]
    arguments = {"x": torch.ones(1, 4, 3, 3), "weight": torch.ones(4, 1, 3, 3), "bias": torch.ones(4)} | change
    with pytest.raises(error, match=message):
        depthwise_conv2d(**arguments)
