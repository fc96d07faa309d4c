"""The layers between image and stages: PatchEmbed, ConvStem, ConvDownsample, with what they are made of."""

import pytest
import torch

from mtlkit.nn import ConvDownsample, ConvStem, Mlp, PatchEmbed, Permute


def shapes(layer: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in layer.state_dict().items()}


def test_patch_embed():
    layer = PatchEmbed(3, 96)
    assert sum(p.numel() for p in layer.parameters()) == 4896
    assert list(shapes(layer)) == ["proj.weight", "proj.bias", "norm.weight", "norm.bias"]
    images = torch.randn(2, 3, 18, 23)
    y = layer(images)
    assert y.shape == (2, 4, 5, 96)
    torch.testing.assert_close(y, layer(images[:, :, :16, :20]))
    patch = images[0, :, 4:8, 8:12]  # row 1, column 2
    projected = torch.einsum("chw,dchw->d", patch, layer.proj.weight) + layer.proj.bias
    torch.testing.assert_close(y[0, 1, 2], layer.norm(projected))


def test_conv_stem():
    layer = ConvStem(3, 8)
    assert shapes(layer) == {
        "0.weight": (4, 3, 3, 3),
        "0.bias": (4,),
        "2.weight": (4,),
        "2.bias": (4,),
        "5.weight": (8, 4, 3, 3),
        "5.bias": (8,),
        "7.weight": (8,),
        "7.bias": (8,),
    }
    y = layer(torch.randn(2, 3, 18, 33))
    assert y.shape == (2, 5, 9, 8)
    torch.testing.assert_close(y.mean(-1), torch.zeros(2, 5, 9), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(-1, correction=0), torch.ones(2, 5, 9), atol=1e-2, rtol=0)


def test_conv_downsample():
    layer = ConvDownsample(4, 8)
    assert shapes(layer) == {"1.weight": (8, 4, 3, 3), "1.bias": (8,), "3.weight": (8,), "3.bias": (8,)}
    x = torch.randn(2, 5, 6, 4)
    y = layer(x)
    assert y.shape == (2, 3, 3, 8)
    torch.testing.assert_close(y, layer[3](layer[1](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))


def test_mlp_is_gelu_by_erf():
    layer = Mlp(4, 16, dtype=torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    h = layer.fc1(x)
    h = 0.5 * h * (1 + torch.erf(h / 2**0.5))
    torch.testing.assert_close(layer(x), layer.fc2(h))
    assert not torch.equal(Mlp(4, 16, dropout=0.5).train()(x.float()), layer.float()(x.float()))


def test_permute():
    assert Permute(0, 2, 3, 1)(torch.zeros(1, 2, 3, 4)).shape == (1, 3, 4, 2)
    assert repr(Permute(0, 2, 3, 1)) == "Permute(0, 2, 3, 1)"


def test_bad_options():
    with pytest.raises(ValueError, match="dim: expected an even number of channels, got 7"):
        ConvStem(3, 7)
