"""Convolutions of small channels-last maps as products of pixels and weights."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.operators.pixel_linear import by_kernels, pixel_linear

SMALL = 20480  # elements up to which PyTorch convolves a single map without oneDNN


class PixelConv2d(nn.Conv2d):
    """An nn.Conv2d of 1 x 1, or of 3 x 3 with padding 1, for channels-last maps: (B, C_in, H, W) to (B, C_out, H, W).

    PyTorch convolves a single small map on a CPU, such as 7 x 7 pixels of 384 channels, without oneDNN, and converts
    channels-last weights in every call. In float32 such a map is unfolded here and multiplied by mtlkit's kernels.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not (by_kernels(input, weight, bias) and self._is_product(input)):
            return super()._conv_forward(input, weight, bias)
        x = input.permute(0, 2, 3, 1)  # (B, H, W, C_in)
        rows = weight.permute(0, 2, 3, 1).flatten(1)  # (C_out, k k C_in), a view of channels-last weights
        if self.kernel_size == (3, 3):
            x = _neighbours(x)  # (1, H, W, 9 C_in)
        return pixel_linear(x, rows, bias).permute(0, 3, 1, 2)

    def _is_product(self, x: Tensor) -> bool:
        """Whether the settings and the map are those for which a product is faster."""
        window = self.kernel_size, self.padding
        small = 0 < x.numel() <= SMALL
        return (
            self.stride == self.dilation == (1, 1)
            and self.groups == 1
            and self.padding_mode == "zeros"
            and x.dim() == 4
            and x.shape[1] == self.in_channels
            and x.is_contiguous(memory_format=torch.channels_last)
            and (window == ((1, 1), (0, 0)) or (window == ((3, 3), (1, 1)) and x.shape[0] == 1 and small))
        )


def _neighbours(x: Tensor) -> Tensor:
    """The 3 x 3 neighbours of every pixel: (1, H, W, C) to (1, H, W, 9 C), zeros beyond the borders."""
    neighbours: Any = _Neighbours.apply(x)
    return neighbours


class _Neighbours(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))  # (1, H + 2, W + 2, C)
        return torch.cat([padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        height, width = grads[0].shape[1:3]
        parts = grads[0].chunk(9, -1)  # (1, H, W, C) each
        dx = F.pad(torch.zeros_like(parts[0]), (0, 0, 1, 1, 1, 1))  # (1, H + 2, W + 2, C)
        for i in range(3):
            for j in range(3):
                dx[:, i : i + height, j : j + width] += parts[3 * i + j]
        return dx[:, 1:-1, 1:-1]
