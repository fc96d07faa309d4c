"""The convolution between two stages of VMamba."""

import torch
from torch import nn

from mtlkit.nn.permute import Permute


class ConvDownsample(nn.Sequential):
    """A strided 3 x 3 convolution, then LayerNorm; halves the rows and columns.

    Called downsampling v3 in VMamba; parameters have its indices: 1, 3.

    Args:
        in_dim: channels of the input.
        out_dim: channels of the output.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-last: (B, H, W, in_dim) to (B, H / 2, W / 2, out_dim), rounded up.

    Source: Liu et al., "VMamba: Visual State Space Model" (2024), appendix on architectures.

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.nn.ConvDownsample(8, 16)(torch.randn(1, 7, 6, 8)).shape
        torch.Size([1, 4, 3, 16])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            Permute(0, 3, 1, 2),
            nn.Conv2d(in_dim, out_dim, 3, 2, 1, device=device, dtype=dtype),  # (B, out_dim, H/2, W/2)
            Permute(0, 2, 3, 1),
            nn.LayerNorm(out_dim, device=device, dtype=dtype),  # (B, H/2, W/2, out_dim)
        )
