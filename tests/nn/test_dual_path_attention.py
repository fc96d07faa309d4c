"""DualPathAttention: its formula; test_residual_block.py has the tests shared with related layers."""

import torch

from mtlkit.nn import DualPathAttention


def test_attention_gates_are_in_parallel():
    layer = DualPathAttention(8, dtype=torch.float64)
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    channels = torch.sigmoid(layer.ch_fc2(layer.ch_fc1(x.mean((2, 3))).relu()))
    pixels = torch.sigmoid(layer.spatial(torch.stack((x.max(1).values, x.mean(1)), 1)))
    torch.testing.assert_close(layer(x), x * channels[..., None, None] * pixels)
