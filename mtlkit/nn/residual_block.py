"""The residual block of MBDI and BTI-Net."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit._check import check_channels_first, check_positive
from mtlkit._factory import Factory
from mtlkit._keras import BATCH_NORM, init_as_keras
from mtlkit.nn.dual_path_attention import DualPathAttention
from mtlkit.nn.multi_scale_fusion import MultiScaleFusion
from mtlkit.nn.separable_conv import SeparableConv


class ResidualBlock(nn.Module):
    """Two separable convolutions, multi-scale fusion and attention, with a residual connection.

        h   = BN1(ReLU(Sep3x3(X)))
        h   = BN2(Sep3x3(h))
        h   = HMSF(h)
        h   = DualPathAttention(h)                             only with `attention`
        out = ReLU(h + X)                                      X through a 1 x 1 convolution if the channels differ

    Batch normalisation has Keras' eps of 1e-3 and momentum (0.01 as PyTorch counts it). Parameters: conv1, bn1, conv2,
    bn2, hmsf, attn, proj.

    Args:
        in_dim: channels of the input.
        dim: channels of the output.
        attention: whether to apply DualPathAttention after the fusion.
        multi_scale: whether to apply the fusion; False is the ablation without HMSF.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first: (B, in_dim, H, W) to (B, dim, H, W).

    Raises:
        ValueError: a size is not positive (`dim` below 8 with the fusion), or the input has another shape.
        TypeError: an input is not a floating-point tensor.

    Source: "Multi-Level Bidirectional Decoder Interaction for Uncertainty-Aware Breast Ultrasound Analysis"
    (arXiv 2603.01295), section 2.

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.nn.ResidualBlock(8, 16)(torch.randn(2, 8, 7, 5)).shape
        torch.Size([2, 16, 7, 5])
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        attention: bool = True,
        multi_scale: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(in_dim=in_dim, dim=dim)
        factory = Factory(device=device, dtype=dtype)
        self.in_dim, self.dim = in_dim, dim
        self.conv1 = SeparableConv(in_dim, dim, **factory)
        self.bn1 = nn.BatchNorm2d(dim, **BATCH_NORM, **factory)
        self.conv2 = SeparableConv(dim, dim, **factory)
        self.bn2 = nn.BatchNorm2d(dim, **BATCH_NORM, **factory)
        self.hmsf = MultiScaleFusion(dim, **factory) if multi_scale else nn.Identity()
        self.attn = DualPathAttention(dim, **factory) if attention else nn.Identity()
        self.proj = nn.Conv2d(in_dim, dim, 1, **factory) if in_dim != dim else nn.Identity()
        self.proj.apply(init_as_keras)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim, H, W) to (B, dim, H, W)."""
        check_channels_first("x", x, self.in_dim)
        h = self.bn1(F.relu(self.conv1(x)))  # (B, dim, H, W)
        h = self.bn2(self.conv2(h))  # (B, dim, H, W)
        h = self.attn(self.hmsf(h))  # (B, dim, H, W)
        return F.relu(h + self.proj(x))  # (B, dim, H, W)

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"in_dim={self.in_dim}, dim={self.dim}"
