"""Channel attention and spatial attention in parallel."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit._check import check_channels_first, check_positive
from mtlkit._factory import Factory
from mtlkit._keras import init_as_keras

REDUCTION = 16
SMALLEST_HIDDEN = 8


class DualPathAttention(nn.Module):
    """Scales every channel by one gate and every pixel by another; both gates are computed from the input.

        channels = sigmoid(W2 ReLU(W1 mean(X) + b1) + b2)      max(8, C / 16) hidden units
        pixels   = sigmoid(Conv7x7([max_c X; mean_c X]))       zeros beyond the borders
        out      = X channels pixels

    In CBAM, by contrast, the second gate sees the output of the first. Parameters: ch_fc1, ch_fc2, spatial.

    Args:
        dim: input and output channels, C.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first: (B, C, H, W) in and out.

    Raises:
        ValueError: `dim` is not positive, or the input has another shape.
        TypeError: an input is not a floating-point tensor.

    Source: Woo et al., "CBAM: Convolutional Block Attention Module" (2018), in the form of arXiv 2603.01295.

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.nn.DualPathAttention(16)(torch.randn(2, 16, 7, 5)).shape
        torch.Size([2, 16, 7, 5])
    """

    def __init__(
        self,
        dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim)
        factory = Factory(device=device, dtype=dtype)
        hidden = max(SMALLEST_HIDDEN, dim // REDUCTION)
        self.dim = dim
        self.ch_fc1 = nn.Linear(dim, hidden, **factory)
        self.ch_fc2 = nn.Linear(hidden, dim, **factory)
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, **factory)
        self.apply(init_as_keras)

    def forward(self, x: Tensor) -> Tensor:
        """Scales channels and pixels: (B, C, H, W) to (B, C, H, W)."""
        check_channels_first("x", x, self.dim)
        channels = self.ch_fc2(F.relu(self.ch_fc1(x.mean((2, 3))))).sigmoid()  # (B, C)
        pixels = self.spatial(torch.cat((x.amax(1, True), x.mean(1, True)), 1)).sigmoid()  # (B, 1, H, W)
        return x * channels[:, :, None, None] * pixels  # (B, C, H, W)

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"dim={self.dim}"
