"""ConvDownsample: parameter names, and the result of its layers one by one."""

import torch

from mtlkit.nn import ConvDownsample


def shapes(layer: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in layer.state_dict().items()}


def test_conv_downsample():
    layer = ConvDownsample(4, 8)
    assert shapes(layer) == {"1.weight": (8, 4, 3, 3), "1.bias": (8,), "3.weight": (8,), "3.bias": (8,)}
    x = torch.randn(2, 5, 6, 4)
    y = layer(x)
    assert y.shape == (2, 3, 3, 8)
    torch.testing.assert_close(y, layer[3](layer[1](x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
