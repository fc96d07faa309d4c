"""Mlp: activation and dropout."""

import torch

from mtlkit.nn import Mlp


def test_mlp_is_gelu_by_erf():
    layer = Mlp(4, 16, dtype=torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    h = layer.fc1(x)
    h = 0.5 * h * (1 + torch.erf(h / 2**0.5))
    torch.testing.assert_close(layer(x), layer.fc2(h))
    assert not torch.equal(Mlp(4, 16, dropout=0.5).train()(x.float()), layer.float()(x.float()))
