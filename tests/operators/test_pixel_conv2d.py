"""Convolutions of small maps equal those of PyTorch, by the kernels or not."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtlkit
from mtlkit import _native
from mtlkit.operators import pixel_conv2d
from mtlkit.operators.pixel_conv2d import PixelConv2d
from mtlkit.testing import assert_accurate

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The outputs of the convolutions so far that were products."""
    found, run = [], pixel_conv2d.pixel_linear

    def spy(*arguments: Tensor) -> Tensor:
        found.append(run(*arguments))
        return found[-1]

    monkeypatch.setattr(pixel_conv2d, "pixel_linear", spy)
    return found


def pair(channels: int, size: int, layout: torch.memory_format = torch.channels_last, **options):
    """A layer and that of PyTorch with the same weights."""
    options = {"padding": size // 2} | options
    layer, plain = PixelConv2d(channels, 12, size, **options), nn.Conv2d(channels, 12, size, **options)
    plain.load_state_dict(layer.state_dict())
    return layer.to(memory_format=layout), plain


def image(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


def results(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The output, and the gradients of the map and of the parameters, for a fixed direction."""
    x = x.detach().requires_grad_()
    y = layer(x)
    direction = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return y.detach(), *torch.autograd.grad(y, (x, *layer.parameters()), direction)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("size", "shape", "by_product"),
    [
        (3, (1, 20, 7, 5), True),
        (3, (1, 3, 1, 1), True),
        (3, (2, 20, 7, 5), False),
        (3, (1, 64, 18, 18), False),
        (1, (2, 20, 7, 5), True),
    ],
)
def test_equals_the_convolution_of_torch(size, shape, by_product, layout, products):
    layer, plain = pair(shape[1], size, layout, bias=size == 3)
    x = image(*shape)
    found = results(layer, x)
    assert bool(products) == by_product
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for name, got, expected in zip(
        ("y", "dx", "dweight", "dbias"), found, results(plain.double(), x.double()), strict=False
    ):
        assert_accurate(name, got, expected)


@pytest.mark.parametrize(
    "options", [{"stride": 2}, {"padding": 0}, {"padding": "same"}, {"groups": 2}, {"padding_mode": "reflect"}]
)
def test_other_settings_are_convolutions_of_torch(options, products):
    layer, plain = pair(8, 3, **options)
    x = image(1, 8, 7, 5)
    torch.testing.assert_close(layer(x), plain(x))
    assert not products


def test_torch_runs_where_the_kernels_do_not(products):
    layer, plain = pair(8, 3)
    x = image(1, 8, 7, 5)
    expected = plain(x)
    with mtlkit.use_backend("torch"):
        torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x[0]), expected[0])
    torch.testing.assert_close(layer(x.contiguous()), expected)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), expected)
    exported = torch.export.export(layer, (x,))
    assert any("conv2d" in str(node.target) for node in exported.graph.nodes)
    with pytest.raises(RuntimeError):
        layer(image(1, 7, 7, 5))
    assert not products


def test_second_derivatives_and_copies(products):
    layer = copy.deepcopy(pair(4, 3)[0])
    found = []
    for call in (layer, lambda x: F.conv2d(x, layer.weight, layer.bias, padding=1)):
        torch.manual_seed(0)
        x = image(1, 4, 3, 2).requires_grad_()
        (dx,) = torch.autograd.grad(call(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(dx.square().sum(), (x, layer.weight)))
    torch.testing.assert_close(*found)
    assert len(products) == 1
