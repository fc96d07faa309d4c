"""A depthwise convolution, then a pointwise one."""

import torch
from torch import Tensor, nn

from mtlkit._check import check_channels_first, check_positive
from mtlkit._factory import Factory
from mtlkit._keras import init_as_keras


class SeparableConv(nn.Module):
    """A depthwise 3 x 3 convolution, then a 1 x 1 convolution across the channels.

    It is Keras' SeparableConv2D with padding "same": no bias and no activation between the two, and zeros beyond the
    borders. Parameters: depthwise.weight (in_dim, 1, 3, 3), pointwise.weight (out_dim, in_dim, 1, 1), pointwise.bias
    (out_dim); initialised Glorot-uniform and to 0, as in Keras.

    Args:
        in_dim: channels of the input.
        out_dim: channels of the output.
        dilation: dilation of the 3 x 3 convolution.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        Channels-first: (B, in_dim, H, W) to (B, out_dim, H, W).

    Raises:
        ValueError: a size is not positive, or the input has another shape.
        TypeError: an input is not a floating-point tensor.

    Source: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions" (2017).

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.nn.SeparableConv(8, 16, dilation=2)(torch.randn(1, 8, 7, 5)).shape
        torch.Size([1, 16, 7, 5])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        dilation: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(in_dim=in_dim, out_dim=out_dim, dilation=dilation)
        factory = Factory(device=device, dtype=dtype)
        self.in_dim = in_dim
        self.depthwise = nn.Conv2d(
            in_dim, in_dim, 3, padding=dilation, dilation=dilation, groups=in_dim, bias=False, **factory
        )
        self.pointwise = nn.Conv2d(in_dim, out_dim, 1, **factory)
        self.apply(init_as_keras)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes pixels, then channels: (B, in_dim, H, W) to (B, out_dim, H, W)."""
        check_channels_first("x", x, self.in_dim)
        return self.pointwise(self.depthwise(x))  # (B, out_dim, H, W)
