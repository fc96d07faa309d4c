"""The formula, and a form made of PyTorch's own normalisation and activation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.operators._launch import compute_dtype


def norm_gate_reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, z: Tensor | None, eps: float) -> Tensor:
    """The formula."""
    dtype = compute_dtype(x, z)
    centred = x.to(dtype) - x.to(dtype).mean(-1, keepdim=True)  # (..., D)
    variance = centred.square().mean(-1, keepdim=True)  # (..., 1)
    y = centred / torch.sqrt(variance + eps)
    if weight is not None:
        y = y * weight.to(dtype)
    if bias is not None:
        y = y + bias.to(dtype)
    if z is not None:
        y = y * (z.to(dtype) / (1 + torch.exp(-z.to(dtype))))
    return y.to(x.dtype).contiguous()


def norm_gate_torch(x: Tensor, weight: Tensor | None, bias: Tensor | None, z: Tensor | None, eps: float) -> Tensor:
    """The same by PyTorch's own normalisation and activation, in the dtype of x."""
    weight, bias, z = (None if t is None else t.to(x.dtype) for t in (weight, bias, z))
    y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)  # (..., D)
    if z is not None:
        y = y * F.silu(z)
    return y.to(x.dtype).contiguous()
