r"""norm_gate: LayerNorm over the channels, times SiLU of a gate, in one pass.

D channels in the last dimension, any dimensions before it.

    n = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias     mean and biased variance over D
    y = n SiLU(z),   SiLU(z) = z / (1 + exp(-z));   y = n without a gate

It is what stands between the scan and the output projection in every SS2D layer.

Source: Ba et al., "Layer Normalization" (2016); Liu et al., "VMamba: Visual State Space Model" (2024), figure 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.ops._backend import choose
from mtlkit.ops._check import check_device, check_shape, check_tensor
from mtlkit.ops._native_call import compute_dtype

SERVED = ("torch", "reference")

# --- reference, and vectorised PyTorch --------------------------------------------------------------------------------


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
    """PyTorch's own normalisation and activation, in the dtype of x."""
    weight, bias, z = (None if t is None else t.to(x.dtype) for t in (weight, bias, z))
    y = F.layer_norm(x, x.shape[-1:], weight, bias, eps)  # (..., D)
    if z is not None:
        y = y * F.silu(z)
    return y.to(x.dtype).contiguous()


# --- shape rule -------------------------------------------------------------------------------------------------------


def _check(x, weight, bias, z, eps) -> None:
    check_tensor("x", x, tuple(range(1, 9)))
    channels = x.shape[-1]
    if channels < 1:
        raise ValueError(f"x: expected shape (..., D) with D at least 1, got {tuple(x.shape)}")
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            check_tensor(name, vector, 1)
            check_shape(name, vector, "(D,)", channels)
    if z is not None:
        check_tensor("z", z, x.dim())
        check_shape("z", z, "(..., D), that of x,", *x.shape)
    check_device(x=x, weight=weight, bias=bias, z=z)
    if not isinstance(eps, int | float) or not eps >= 0:
        raise ValueError(f"eps: expected a number that is at least 0, got {eps!r}")


# --- public -----------------------------------------------------------------------------------------------------------


def norm_gate(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    z: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """LayerNorm over the last dimension, times SiLU(z) where a gate z is given.

    Inputs may be float32, float64, bfloat16 or float16, mixed as they come, of any strides; rows whose channels lie
    side by side are read where they are. Mean, variance and sums are float32 (float64 where x or z is).

    Args:
        x: input, (..., D), up to 8 dimensions.
        weight: factor of each channel, (D,); ones if None.
        bias: added to each channel, (D,); zeros if None.
        z: gate before SiLU, in the shape of x.
        eps: added to the variance.

    Returns:
        The output, contiguous, in the shape and dtype of x.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes or devices do not fit together, or the backend that was asked for cannot serve.

    Example:
        >>> import torch, mtlkit
        >>> x, z = torch.randn(1, 7, 5, 8), torch.randn(1, 7, 5, 8)
        >>> mtlkit.ops.norm_gate(x, torch.ones(8), torch.zeros(8), z).shape
        torch.Size([1, 7, 5, 8])
    """
    _check(x, weight, bias, z, eps)
    backend = choose("norm_gate", SERVED, x.device)
    if backend == "reference":
        return norm_gate_reference(x, weight, bias, z, eps)
    return norm_gate_torch(x, weight, bias, z, eps)
