"""The convolutional stem of VMamba."""

import torch
from torch import nn

from mtlkit._factory import Factory
from mtlkit.nn.permute import Permute


class ConvStem(nn.Sequential):
    """Two strided 3 x 3 convolutions with LayerNorm and GELU; a quarter of the rows and columns remain.

    Called patch embedding v2 in VMamba; parameters have its indices: 0, 2, 5, 7.

    Args:
        in_chans: channels of the image.
        dim: channels of the output, C; even.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first in, (B, in_chans, H, W); channels-last out, (B, H / 4, W / 4, C), rounded up.

    Raises:
        ValueError: `dim` is odd.

    Source: Liu et al., "VMamba: Visual State Space Model" (2024), appendix on architectures.

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.nn.ConvStem(3, 16)(torch.randn(1, 3, 32, 18)).shape
        torch.Size([1, 8, 5, 16])
    """

    def __init__(
        self,
        in_chans: int = 3,
        dim: int = 96,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if dim < 2 or dim % 2:
            raise ValueError(f"dim: expected an even number of channels, got {dim}")
        factory = Factory(device=device, dtype=dtype)
        super().__init__(
            nn.Conv2d(in_chans, dim // 2, 3, 2, 1, **factory),  # (B, C/2, H/2, W/2)
            Permute(0, 2, 3, 1),
            nn.LayerNorm(dim // 2, **factory),  # (B, H/2, W/2, C/2)
            Permute(0, 3, 1, 2),
            nn.GELU(),
            nn.Conv2d(dim // 2, dim, 3, 2, 1, **factory),  # (B, C, H/4, W/4)
            Permute(0, 2, 3, 1),
            nn.LayerNorm(dim, **factory),  # (B, H/4, W/4, C)
        )
