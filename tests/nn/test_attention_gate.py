"""AttentionGate: sizes and errors; test_residual_block.py has the tests shared with related layers."""

import pytest
import torch
import torch.nn.functional as F

from mtlkit.nn import AttentionGate


def test_gate_resizes_its_term_at_half_pixels():
    gate = AttentionGate(4, 3, 2, dtype=torch.float64)
    skip, small = torch.randn(1, 4, 4, 6, dtype=torch.float64), torch.randn(1, 3, 2, 3, dtype=torch.float64)
    large = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(gate(skip, small), gate(skip, large))
    assert not torch.allclose(gate(skip, small), gate(skip, F.interpolate(small, scale_factor=2)))


def test_bad_input_of_the_gate():
    gate = AttentionGate(8, 3, 5)
    with pytest.raises(ValueError, match=r"skip: expected shape \(B, 8, H, W\)"):
        gate(torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"g: expected shape \(B, 3, H, W\)"):
        gate(torch.randn(1, 8, 4, 4), torch.randn(1, 8, 4, 4))
    with pytest.raises(ValueError, match="g: expected a batch of 2 as in skip, got 1"):
        gate(torch.randn(2, 8, 4, 4), torch.randn(1, 3, 4, 4))
