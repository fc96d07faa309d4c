"""SS-Conv-SSM, the block of MedMamba."""

import torch
from torch import Tensor, nn

from mtlkit._check import check_channels_last
from mtlkit._factory import Factory
from mtlkit.nn.drop_path import DropPath
from mtlkit.nn.ss2d import SS2D
from mtlkit.operators.pixel_conv2d import PixelConv2d


class SSConvSSM(nn.Module):
    """Half of the channels go through convolutions, half through SS2D; then they are shuffled and the input is added.

        left, right = split(X)
        left'  = ReLU(Conv1(ReLU(BN(Conv3(ReLU(BN(Conv3(BN(left)))))))))
        right' = DropPath(SS2D(LayerNorm(right)))
        out    = shuffle(left', right') + X                    channels 2 j and 2 j + 1 are left'_j and right'_j

    Parameters are named as in MedMamba: ln_1, self_attention, conv33conv33conv11.

    Args:
        dim: input and output channels, C; even.
        d_state: states of each channel of the scan.
        ssm_ratio: ratio of the scan's channels to those of its half.
        dropout: probability after the output projection of SS2D.
        drop_path: probability that a sample's SS2D branch is dropped.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-last as in the original: (B, H, W, C) in and out.

    Raises:
        ValueError: `dim` is odd, another option is out of its range, or the input has another shape.

    Source: Yue and Li, "MedMamba: Vision Mamba for Medical Image Classification" (2024), figure 2.

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.nn.SSConvSSM(32)(torch.randn(2, 7, 5, 32)).shape
        torch.Size([2, 7, 5, 32])
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"dim: expected an even number of channels, got {dim}")
        factory = Factory(device=device, dtype=dtype)
        half = dim // 2
        self.dim = dim
        self.ln_1 = nn.LayerNorm(half, **factory)
        self.self_attention = SS2D(half, d_state, ssm_ratio, dropout=dropout, **factory)
        self.drop_path = DropPath(drop_path)
        self.conv33conv33conv11 = nn.Sequential(
            nn.BatchNorm2d(half, **factory),
            PixelConv2d(half, half, 3, padding=1, **factory),
            nn.BatchNorm2d(half, **factory),
            nn.ReLU(),
            PixelConv2d(half, half, 3, padding=1, **factory),
            nn.BatchNorm2d(half, **factory),
            nn.ReLU(),
            PixelConv2d(half, half, 1, **factory),
            nn.ReLU(),
        ).to(memory_format=torch.channels_last)  # as the images; otherwise every call would convert the weights

    def forward(self, x: Tensor) -> Tensor:
        """Local and global mixing in parallel: (B, H, W, C) to (B, H, W, C)."""
        check_channels_last("x", x, self.dim)
        left, right = x.chunk(2, -1)  # (B, H, W, C/2) each
        left = left.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)  # (B, C/2, H, W), dense for BN
        left = self.conv33conv33conv11(left).permute(0, 2, 3, 1)  # (B, H, W, C/2)
        right = self.drop_path(self.self_attention(self.ln_1(right)))  # (B, H, W, C/2)
        return torch.stack((left, right), -1).flatten(-2) + x  # (B, H, W, C)

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"dim={self.dim}"
