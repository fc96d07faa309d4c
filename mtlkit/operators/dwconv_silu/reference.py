"""The formula, and a form made of PyTorch's own convolution and activation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.operators._launch import compute_dtype
from mtlkit.operators.dwconv_silu.signature import TAPS, memory_format, new_output


def dwconv_silu_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The formula, one tap after another."""
    dtype = compute_dtype(x)
    height, width = x.shape[2:]
    padded = F.pad(x.to(dtype), (1, 1, 1, 1))  # (B, D, H + 2, W + 2)
    a = torch.zeros_like(x, dtype=dtype)  # (B, D, H, W)
    if bias is not None:
        a = a + bias.to(dtype)[:, None, None]
    for i in range(TAPS):
        for j in range(TAPS):
            tap = weight[:, 0, i, j].to(dtype)[:, None, None]  # (D, 1, 1)
            a = a + tap * padded[:, :, i : i + height, j : j + width]
    return new_output(x).copy_(a / (1 + torch.exp(-a)))


def dwconv_silu_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same by PyTorch's own convolution and activation, in the dtype of x."""
    bias = None if bias is None else bias.to(x.dtype)
    a = F.conv2d(x, weight.to(x.dtype), bias, padding=1, groups=x.shape[1])  # (B, D, H, W)
    return F.silu(a).to(x.dtype).contiguous(memory_format=memory_format(x))
