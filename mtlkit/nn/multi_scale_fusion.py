"""Hierarchical multi-scale fusion (HMSF): three dilations, weighted per image."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit._check import check_channels_first
from mtlkit._factory import Factory
from mtlkit._keras import init_as_keras
from mtlkit.nn.separable_conv import SeparableConv

DILATIONS = (1, 2, 4)
REDUCTION = 8


class MultiScaleFusion(nn.Module):
    """HMSF: separable convolutions with three dilations, their weighted mean, then a 1 x 1 convolution.

        F_r   = Sep3x3,dilation r (X)                          r = 1, 2, 4
        alpha = softmax(W2 ReLU(W1 mean(X) + b1) + b2)         three weights per image; C / 8 hidden units, rounded down
        out   = Conv1x1(sum_r alpha_r F_r)

    Called MSCF in BTI-Net. The residual connection is that of the enclosing block. Parameters: sep_d1, sep_d2,
    sep_d4, att_fc1, att_fc2, fuse.

    Args:
        dim: input and output channels, C; at least 8.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first: (B, C, H, W) in and out.

    Raises:
        ValueError: `dim` is below 8, or the input has another shape.
        TypeError: an input is not a floating-point tensor.

    Source: "Multi-Level Bidirectional Decoder Interaction for Uncertainty-Aware Breast Ultrasound Analysis"
    (arXiv 2603.01295), equations 9 and 10.

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.nn.MultiScaleFusion(16)(torch.randn(2, 16, 7, 5)).shape
        torch.Size([2, 16, 7, 5])
    """

    def __init__(
        self,
        dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim < REDUCTION:
            raise ValueError(f"dim: expected at least {REDUCTION} channels, got {dim}")
        factory = Factory(device=device, dtype=dtype)
        self.dim = dim
        self.sep_d1, self.sep_d2, self.sep_d4 = (SeparableConv(dim, dim, r, **factory) for r in DILATIONS)
        self.att_fc1 = nn.Linear(dim, dim // REDUCTION, **factory)
        self.att_fc2 = nn.Linear(dim // REDUCTION, len(DILATIONS), **factory)
        self.fuse = nn.Conv2d(dim, dim, 1, **factory)
        self.apply(init_as_keras)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes three neighbourhoods: (B, C, H, W) to (B, C, H, W)."""
        check_channels_first("x", x, self.dim)
        alpha = self.att_fc2(F.relu(self.att_fc1(x.mean((2, 3))))).softmax(-1)  # (B, 3)
        first, second, third = alpha[:, :, None, None, None].unbind(1)  # (B, 1, 1, 1) each
        scales = self.sep_d1(x), self.sep_d2(x), self.sep_d4(x)  # (B, C, H, W) each
        y = (first * scales[0] + second * scales[1] + third * scales[2]).to(scales[0].dtype)  # (B, C, H, W)
        return self.fuse(y)  # (B, C, H, W)

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"dim={self.dim}"
