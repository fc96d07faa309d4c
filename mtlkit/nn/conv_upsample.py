"""The transposed convolution of Keras decoders."""

import torch
from torch import Tensor, nn

from mtlkit._check import check_channels_first, check_positive
from mtlkit._keras import init_as_keras


class ConvUpsample(nn.ConvTranspose2d):
    """A 3 x 3 transposed convolution with stride 2; doubles the rows and columns.

    It is Keras' Conv2DTranspose with padding "same": of the 2 H + 1 rows and 2 W + 1 columns that the taps reach, the
    last row and column are dropped. PyTorch's padding crops both sides and cannot express this. Parameters: weight
    (in_dim, out_dim, 3, 3), bias (out_dim); initialised Glorot-uniform and to 0, as in Keras.

    Args:
        in_dim: channels of the input.
        out_dim: channels of the output.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first: (B, in_dim, H, W) to (B, out_dim, 2 H, 2 W).

    Raises:
        ValueError: a size is not positive, or the input has another shape.
        TypeError: an input is not a floating-point tensor.

    Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning" (2016), section 4.

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.nn.ConvUpsample(8, 4)(torch.randn(1, 8, 7, 5)).shape
        torch.Size([1, 4, 14, 10])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_positive(in_dim=in_dim, out_dim=out_dim)
        super().__init__(in_dim, out_dim, 3, stride=2, device=device, dtype=dtype)
        init_as_keras(self)

    def forward(self, x: Tensor) -> Tensor:
        """Spreads each pixel over 3 x 3: (B, in_dim, H, W) to (B, out_dim, 2 H, 2 W)."""
        check_channels_first("x", x, self.in_channels)
        return super().forward(x)[:, :, :-1, :-1]  # (B, out_dim, 2 H, 2 W)

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"in_dim={self.in_channels}, out_dim={self.out_channels}"
