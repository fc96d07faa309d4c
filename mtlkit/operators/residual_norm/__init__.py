r"""rms_norm and layer_norm of x plus a residual, as in the blocks of mamba-ssm before their mixers.

C channels, the last dimension; every other dimension is a row.

    s = x + residual                                          (..., C)
    y = s / sqrt(mean(s^2) + eps) weight + bias               rms_norm
    y = (s - mean(s)) / sqrt(var(s) + eps) weight + bias      layer_norm

Both are composed of PyTorch operations and run on any device.

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019); Ba et al., "Layer Normalization" (2016);
names and semantics are those of mamba-ssm's `rms_norm_fn` and `layer_norm_fn`.
"""

from collections.abc import Callable
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit._check import check_device, check_shape, check_tensor
from mtlkit.operators._launch import compute_dtype


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    """The shape rule."""
    check_tensor("x", x, tuple(range(1, 65)))
    check_tensor("weight", weight, 1)
    check_shape("weight", weight, "(C,)", x.shape[-1])
    if bias is not None:
        check_tensor("bias", bias, 1)
        check_shape("bias", bias, "(C,)", x.shape[-1])
    if residual is not None:
        check_tensor("residual", residual, x.dim())
        check_shape("residual", residual, "of x", *x.shape)
    check_device(x=x, weight=weight, bias=bias, residual=residual)


def _normalised(
    norm: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    prenorm: bool,
    residual_in_fp32: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """The norm of the sum in the dtype of x, and with `prenorm` also the sum."""
    _check(x, weight, bias, residual)
    dtype = compute_dtype(x, residual)
    total = x.to(dtype) if residual is None else x.to(dtype) + residual.to(dtype)
    y = norm(total, weight.to(dtype), None if bias is None else bias.to(dtype)).to(x.dtype)
    if not prenorm:
        return y
    if residual is not None:
        return y, total.to(residual.dtype)
    return y, total.to(torch.promote_types(x.dtype, torch.float32) if residual_in_fp32 else x.dtype)


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    residual: Tensor | None = ...,
    *,
    eps: float = ...,
    prenorm: Literal[False] = ...,
    residual_in_fp32: bool = ...,
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    residual: Tensor | None = ...,
    *,
    eps: float = ...,
    prenorm: Literal[True],
    residual_in_fp32: bool = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    residual: Tensor | None = ...,
    *,
    eps: float = ...,
    prenorm: bool = ...,
    residual_in_fp32: bool = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
def rms_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Divides x plus a residual by the root of its mean square over the channels, times a weight.

    Tensors may be float32, float64, bfloat16 or float16, in any combination. Sums are float32 (float64 if x or the
    residual is). Gradients flow to every tensor.

    Args:
        x: input, (..., C).
        weight: factor of each channel, (C,).
        bias: added at the end, (C,).
        residual: added to x before the norm, in the shape of x.
        eps: added to the mean square.
        prenorm: whether the sum of x and the residual is returned too.
        residual_in_fp32: whether this sum is in float32 where there is no residual whose dtype it has.

    Returns:
        The output in the shape and dtype of x; with `prenorm` also the sum, in the dtype of the residual, or of x or
        float32 if there is no residual.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together.

    Example:
        >>> import torch, mtlkit
        >>> x, residual = torch.randn(2, 100, 8).bfloat16(), torch.randn(2, 100, 8)
        >>> y, residual = mtlkit.ops.rms_norm(x, torch.ones(8), residual=residual, prenorm=True)
        >>> y.dtype, residual.dtype
        (torch.bfloat16, torch.float32)
    """

    def norm(total: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = F.rms_norm(total, weight.shape, weight, eps)
        return y if bias is None else y + bias

    return _normalised(norm, x, weight, bias, residual, prenorm, residual_in_fp32)


@overload
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    residual: Tensor | None = ...,
    *,
    eps: float = ...,
    prenorm: Literal[False] = ...,
    residual_in_fp32: bool = ...,
) -> Tensor: ...
@overload
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    residual: Tensor | None = ...,
    *,
    eps: float = ...,
    prenorm: Literal[True],
    residual_in_fp32: bool = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    residual: Tensor | None = ...,
    *,
    eps: float = ...,
    prenorm: bool = ...,
    residual_in_fp32: bool = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """LayerNorm over the channels of x plus a residual.

    Dtypes, gradients, results and errors are as for `rms_norm`.

    Args:
        x: input, (..., C).
        weight: factor of each channel, (C,).
        bias: added at the end, (C,).
        residual: added to x before the norm, in the shape of x.
        eps: added to the variance.
        prenorm: whether the sum of x and the residual is returned too.
        residual_in_fp32: whether this sum is in float32 where there is no residual whose dtype it has.

    Returns:
        The output in the shape and dtype of x; with `prenorm` also the sum.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together.

    Example:
        >>> import torch, mtlkit
        >>> x = torch.randn(2, 100, 8)
        >>> mtlkit.ops.layer_norm(x, torch.ones(8), torch.zeros(8), residual=x).shape
        torch.Size([2, 100, 8])
    """

    def norm(total: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.layer_norm(total, weight.shape, weight, bias, eps)

    return _normalised(norm, x, weight, bias, residual, prenorm, residual_in_fp32)
