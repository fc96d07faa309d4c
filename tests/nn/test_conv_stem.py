"""ConvStem: parameter names, its norm, invalid options."""

import pytest
import torch

from mtlkit.nn import ConvStem


def shapes(layer: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in layer.state_dict().items()}


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


def test_bad_options():
    with pytest.raises(ValueError, match="dim: expected an even number of channels, got 7"):
        ConvStem(3, 7)
