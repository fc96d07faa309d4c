"""The two-layer perceptron of a transformer block."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.operators.pixel_linear import PixelLinear


class Mlp(nn.Module):
    """Linear, GELU (the exact one, by erf), Linear, on the last dimension.

    Parameters are named as in VMamba: fc1, fc2.

    Args:
        dim: input and output channels, C.
        hidden: channels between the two linear layers.
        dropout: probability after either linear layer.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shape:
        (..., C) in and out.

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.nn.Mlp(8, 32)(torch.randn(1, 7, 5, 8)).shape
        torch.Size([1, 7, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.fc1 = PixelLinear(dim, hidden, device=device, dtype=dtype)
        self.fc2 = PixelLinear(hidden, dim, device=device, dtype=dtype)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes the channels of each position: (..., C) to (..., C)."""
        x = self.drop(F.gelu(self.fc1(x)))  # (..., hidden)
        return self.drop(self.fc2(x))  # (..., C)
