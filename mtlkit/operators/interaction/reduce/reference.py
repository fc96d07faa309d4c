"""The formulas, and a form made of PyTorch's own convolution and moments."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.operators.interaction.reduce.signature import Reduced


def reduce_reference(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, attn: Tensor | None, energy: bool, dtype: torch.dtype
) -> Reduced:
    """The formulas."""
    x = x.to(dtype)  # (B, C, H, W)
    mean = x.mean((2, 3))  # (B, C)
    variance = (x - mean[:, :, None, None]).square().mean((2, 3))  # (B, C)
    pooled = None
    if weight is not None and bias is not None:
        z = torch.einsum("pc,bchw->bphw", weight.to(dtype), x) + bias.to(dtype)[:, None, None]  # (B, P, H, W)
        if attn is None:
            pooled = F.relu(z).mean((2, 3))  # (B, P)
        else:
            logits = torch.einsum("c,bchw->bhw", attn.to(dtype), x)  # (B, H, W)
            share = torch.softmax(logits.flatten(1), 1)  # (B, L)
            pooled = (F.relu(z).flatten(2) * share[:, None]).sum(2)  # (B, P)
    return Reduced(mean, variance, gradient_energy(x) if energy else None, pooled)


def gradient_energy(x: Tensor) -> Tensor:
    """The sum of absolute differences between neighbours, divided by C H W, (B,)."""
    down = (x[:, :, 1:] - x[:, :, :-1]).abs().sum((1, 2, 3))  # (B,)
    across = (x[..., 1:] - x[..., :-1]).abs().sum((1, 2, 3))  # (B,)
    return (down + across) / (x.shape[1] * x.shape[2] * x.shape[3])


def reduce_torch(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, attn: Tensor | None, energy: bool, dtype: torch.dtype
) -> Reduced:
    """The same by PyTorch's own convolution and moments."""
    if x.shape[0] == 0:  # PyTorch warns about the moments of no image
        return reduce_reference(x, weight, bias, attn, energy, dtype)
    wide = x.to(dtype)  # (B, C, H, W)
    variance, mean = torch.var_mean(wide, (2, 3), correction=0)  # (B, C)
    pooled = None
    if weight is not None and bias is not None:
        z = F.relu(F.conv2d(wide, weight.to(dtype)[:, :, None, None], bias.to(dtype)))  # (B, P, H, W)
        if attn is None:
            pooled = z.mean((2, 3))  # (B, P)
        else:
            logits = F.conv2d(wide, attn.to(dtype)[None, :, None, None])  # (B, 1, H, W)
            pooled = torch.einsum("bpl,bl->bp", z.flatten(2), torch.softmax(logits.flatten(1), 1))  # (B, P)
    return Reduced(mean, variance, gradient_energy(wide) if energy else None, pooled)
