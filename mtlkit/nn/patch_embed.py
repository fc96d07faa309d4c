"""Patches of an image become pixels of a smaller one."""

import torch
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Convolution of patches that do not overlap, then LayerNorm.

    Rows and columns beyond the last complete patch are cropped. Parameters are named as in MedMamba: proj, norm.

    Args:
        in_chans: channels of the image.
        dim: channels of the output, C.
        patch_size: rows and columns of a patch, p.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first in, (B, in_chans, H, W); channels-last out, (B, H // p, W // p, C).

    Source: Yue and Li, "MedMamba" (2024), figure 2; Liu et al., "Swin Transformer" (2021), section 3.1.

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.nn.PatchEmbed(3, 16)(torch.randn(1, 3, 32, 20)).shape
        torch.Size([1, 8, 5, 16])
    """

    def __init__(
        self,
        in_chans: int = 3,
        dim: int = 96,
        patch_size: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(dim, device=device, dtype=dtype)

    def forward(self, images: Tensor) -> Tensor:
        """One vector per patch: (B, in_chans, H, W) to (B, H // p, W // p, C)."""
        x = self.proj(images).permute(0, 2, 3, 1)  # (B, H / p, W / p, C)
        return self.norm(x)
