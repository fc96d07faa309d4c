"""MultiScaleFusion: its formula; test_residual_block.py has the tests shared with related layers."""

import torch
import torch.nn.functional as F

from mtlkit.nn import MultiScaleFusion


def test_fusion_is_a_sum_over_three_dilations():
    layer = MultiScaleFusion(8, dtype=torch.float64)
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    alpha = torch.softmax(layer.att_fc2(layer.att_fc1(x.mean((2, 3))).relu()), 1)  # (B, 3)
    total = 0
    for i, (r, sep) in enumerate(zip((1, 2, 4), (layer.sep_d1, layer.sep_d2, layer.sep_d4), strict=True)):
        taps = F.pad(x, (r, r, r, r)).unfold(2, 2 * r + 1, 1).unfold(3, 2 * r + 1, 1)[..., ::r, ::r]
        scale = torch.einsum("bchwij,cij,oc->bohw", taps, sep.depthwise.weight[:, 0], sep.pointwise.weight[..., 0, 0])
        total = total + alpha[:, i, None, None, None] * (scale + sep.pointwise.bias[:, None, None])
    torch.testing.assert_close(layer(x), layer.fuse(total))
