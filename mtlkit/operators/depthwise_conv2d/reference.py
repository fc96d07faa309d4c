"""The formula, and a form made of PyTorch's own convolution and activation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.operators._launch import compute_dtype
from mtlkit.operators.depthwise_conv2d.signature import Options, memory_format, new_map, out_size


def depthwise_conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, ...], dilation: int, silu: bool
) -> Tensor:
    """The formula, one tap after another."""
    dtype, taps = compute_dtype(x), weight.shape[-1]
    height, width = out_size(x, weight, Options(stride, padding, dilation, silu))
    padded = F.pad(x.to(dtype), padding)  # (B, D, top + H + bottom, left + W + right)
    a = x.new_zeros((*x.shape[:2], height, width), dtype=dtype)  # (B, D, H', W')
    if bias is not None:
        a = a + bias.to(dtype)[:, None, None]
    for i in range(taps):
        for j in range(taps):
            tap = weight[:, 0, i, j].to(dtype)[:, None, None]  # (D, 1, 1)
            rows = padded[:, :, i * dilation :: stride, j * dilation :: stride]
            a = a + tap * rows[:, :, :height, :width]
    return new_map(x, height, width).copy_(a / (1 + torch.exp(-a)) if silu else a)


def depthwise_conv2d_torch(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, ...], dilation: int, silu: bool
) -> Tensor:
    """The same by PyTorch's own convolution and activation, in the dtype of x."""
    bias = None if bias is None else bias.to(x.dtype)
    left, right, top, bottom = padding
    inside = (top, left)
    if left != right or top != bottom:
        x, inside = F.pad(x, padding), 0
    a = F.conv2d(x, weight.to(x.dtype), bias, stride, inside, dilation, groups=x.shape[1])  # (B, D, H', W')
    return (F.silu(a) if silu else a).to(x.dtype).contiguous(memory_format=memory_format(x))
