"""Layers with packed weights, compared with the original layers."""

import copy
import pickle

import pytest
import torch
from torch import nn

from mtlkit.deploy import _packed
from mtlkit.deploy._packed import PackedConv2d, PackedLinear, PhasedConvTranspose2d
from mtlkit.nn import ConvUpsample
from mtlkit.testing import assert_accurate

CONVOLUTIONS = {
    "pointwise": (6, 5, 1),
    "small": (6, 5, 3, 1, 1),
    "strided": (6, 8, (3, 1), 2, (1, 0)),
    "depthwise": (6, 6, 5, 1, 2, 1, 6),
    "dilated": (6, 4, 3, 1, 2, 2, 2, False),
}
TRANSPOSED = {
    "bare": {"kernel_size": 3},
    "padded": {"kernel_size": 4, "padding": 1},
    "apart": {"kernel_size": 2},
    "uneven": {"kernel_size": (5, 2), "padding": (2, 1), "output_padding": (1, 0), "bias": False},
}
SIZES = (1, 7, 5), (3, 1, 1), (2, 6, 9)


def assert_serves(layer: nn.Module, packed: nn.Module, *sizes: tuple[int, ...]) -> None:
    """Checks the first call of a size, and calls that find packed weights; in either memory format."""
    exact = copy.deepcopy(layer).double()
    with torch.no_grad():
        for size in sizes:
            x = torch.randn(*size)
            given = [x, x, x, x.contiguous(memory_format=torch.channels_last)] if x.dim() == 4 else [x, x, x]
            for one in given:
                assert_accurate(str(size), packed(one), exact(x.double()))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    layer = nn.Conv2d(*CONVOLUTIONS[name]).requires_grad_(False)
    assert_serves(layer, PackedConv2d(layer), *((b, 6, h, w) for b, h, w in SIZES))


def test_padding_as_tensorflow_has_it():
    timm = pytest.importorskip("timm.layers")
    layer = timm.Conv2dSame(6, 6, 3, stride=2, groups=3).requires_grad_(False)
    assert_serves(layer, PackedConv2d(layer, same=True), *((b, 6, h, w) for b, h, w in SIZES))


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name):
    layer = nn.ConvTranspose2d(6, 4, stride=2, **TRANSPOSED[name]).requires_grad_(False)
    assert PhasedConvTranspose2d.can_serve(layer)
    assert_serves(layer, PhasedConvTranspose2d(layer), (1, 6, 7, 5), (2, 6, 4, 3))


def test_what_has_no_phases():
    for options in ({"stride": 3}, {"stride": 2, "groups": 2}, {"stride": 2, "output_padding": 1}):
        assert not PhasedConvTranspose2d.can_serve(nn.ConvTranspose2d(4, 4, 3, **options))


def test_cropped():
    layer = ConvUpsample(6, 4).requires_grad_(False)
    packed = PhasedConvTranspose2d(layer, crop=1)
    assert_serves(layer, packed, (2, 6, 5, 3))
    assert packed(torch.rand(2, 6, 5, 3, requires_grad=True)).shape == (2, 4, 10, 6)


def test_linear_layers():
    layer = nn.Linear(6, 5).requires_grad_(False)
    assert_serves(layer, PackedLinear(layer), (2, 7, 5, 6), (1, 9, 6), (2, 6), (6,))


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(True), nn.ReLU6(), nn.SiLU(), nn.GELU(), nn.GELU("tanh"), nn.LeakyReLU(0.3), nn.Tanh(), nn.Hardswish()],
    ids=repr,
)
def test_activations(activation):
    layer = nn.Conv2d(6, 5, 3, padding=1).requires_grad_(False)
    packed = PackedConv2d(layer)
    packed.fuse(activation)
    assert_serves(nn.Sequential(layer, activation), packed, (1, 6, 7, 5), (2, 6, 3, 3))


def test_what_has_no_name():
    assert _packed.fused_name(nn.Softplus()) is None
    assert _packed.fused_name(nn.PReLU()) is None


def test_other_calls_run_as_pytorch_has_them():
    layer = nn.Conv2d(6, 5, 3).requires_grad_(False)
    packed = PackedConv2d(layer)
    x = torch.rand(2, 6, 7, 5, requires_grad=True)
    packed(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert packed(x[:0].detach()).shape == (0, 5, 5, 3)
    assert packed(x[0].detach()).shape == (5, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(x.detach()).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="channels"):
        packed(torch.rand(2, 5, 7, 5))
    compiled = torch.export.export(packed, (x.detach(),)).module()
    assert torch.equal(compiled(x.detach()), layer(x.detach()))


def test_weights_that_change():
    layer = nn.Conv2d(6, 5, 3).requires_grad_(False)
    packed, x = PackedConv2d(layer), torch.rand(2, 6, 7, 5)
    for _ in range(3):
        packed(x)
    assert packed._packed[1] is not None
    packed.weight.mul_(2)
    assert_accurate("changed", packed(x), copy.deepcopy(layer).double()(x.double()))
    assert packed._packed[1] is None
    again = pickle.loads(pickle.dumps(packed))
    assert torch.equal(again(x), packed(x))
    assert list(packed.state_dict()) == ["weight", "bias"]
