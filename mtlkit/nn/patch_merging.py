"""Halves the rows and columns of a feature map by merging 2 x 2 pixels."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit._check import check_channels_last, check_choice
from mtlkit.operators.pixel_linear import PixelLinear


class PatchMerging(nn.Module):
    """Concatenates the channels of 2 x 2 pixels, normalises them and projects 4 C channels to 2 C.

    The order of the four is (0, 0), (1, 0), (0, 1), (1, 1), row and column. Parameters are named as in MedMamba and
    VMamba: norm, reduction.

    Args:
        dim: channels of the input, C.
        odd: how to treat an odd number of rows or columns: "crop" drops the last one, as in MedMamba, "pad" adds zeros,
            as in VMamba.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-last: (B, H, W, C) to (B, H / 2, W / 2, 2 C), rounded down with "crop", up with "pad".

    Raises:
        ValueError: `odd` has another value, or the input has another shape or is too small.

    Source: Liu et al., "Swin Transformer" (2021), section 3.1.

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.nn.PatchMerging(8)(torch.randn(1, 7, 6, 8)).shape
        torch.Size([1, 3, 3, 16])
    """

    def __init__(
        self,
        dim: int,
        odd: Literal["crop", "pad"] = "crop",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("odd", odd, ("crop", "pad"))
        self.dim = dim
        self.odd = odd
        self.reduction = PixelLinear(4 * dim, 2 * dim, bias=False, device=device, dtype=dtype)
        self.norm = nn.LayerNorm(4 * dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Half the rows and columns, twice the channels."""
        check_channels_last("x", x, self.dim)
        height, width = x.shape[1:3]
        if self.odd == "crop" and min(height, width) < 2:
            raise ValueError(f"x: expected H and W of at least 2, got {tuple(x.shape)}; odd='pad' accepts smaller maps")
        sign = 1 if self.odd == "pad" else -1
        # crops by padding too: a view would make torch.compile distinguish odd sizes from even ones
        x = F.pad(x, (0, 0, 0, sign * (width % 2), 0, sign * (height % 2)))
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        x = x.unflatten(2, (columns, 2)).unflatten(1, (rows, 2))  # (B, H/2, 2, W/2, 2, C)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # (B, H/2, W/2, 4 C)
        return self.reduction(self.norm(x))  # (B, H/2, W/2, 2 C)

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"dim={self.dim}, odd={self.odd!r}"
