r"""dwconv_silu: depthwise 3 x 3 convolution, bias and SiLU in one pass over the image.

B images, D channels, H x W pixels; pixels beyond the border are 0.

    a[b, d, h, w] = bias[d] + sum_ij weight[d, 0, i, j] x[b, d, h + i - 1, w + j - 1],   i, j in 0, 1, 2
    y = SiLU(a) = a / (1 + exp(-a))

It is what stands between the input projection and the scan in every SS2D layer.

Source: Liu et al., "VMamba: Visual State Space Model" (2024), figure 3; the convolution of Mamba's block, in 2-D.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit import _native
from mtlkit._check import check_device, check_shape, check_tensor
from mtlkit.ops._backend import choose
from mtlkit.ops._native_call import (
    address,
    argument,
    as_float,
    check,
    check_cuda,
    compute_dtype,
    first_order_only,
    fresh,
    gpu,
    launching,
    single_precision_only,
    traced,
)

SERVED = ("cpu", "cuda", "triton", "torch", "reference")
TAPS = 3

# --- reference, and vectorised PyTorch --------------------------------------------------------------------------------


def dwconv_silu_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The formula, tap by tap."""
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
    return _new_output(x).copy_(a / (1 + torch.exp(-a)))


def dwconv_silu_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's own convolution and activation, in the dtype of x."""
    bias = None if bias is None else bias.to(x.dtype)
    a = F.conv2d(x, weight.to(x.dtype), bias, padding=1, groups=x.shape[1])  # (B, D, H, W)
    return F.silu(a).to(x.dtype).contiguous(memory_format=_memory_format(x))


# --- shape rule -------------------------------------------------------------------------------------------------------


def _check(x, weight, bias) -> None:
    check_tensor("x", x, 4)
    check_tensor("weight", weight, 4)
    channels, height, width = x.shape[1:]
    if channels < 1 or height < 1 or width < 1:
        raise ValueError(f"x: expected shape (B, D, H, W) with D, H and W at least 1, got {tuple(x.shape)}")
    check_shape("weight", weight, "(D, 1, 3, 3)", channels, 1, TAPS, TAPS)
    if bias is not None:
        check_tensor("bias", bias, 1)
        check_shape("bias", bias, "(D,)", channels)
    check_device(x=x, weight=weight, bias=bias)


def _memory_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.shape[1] > 1 and x.stride(1) == 1 else torch.contiguous_format


def _new_output(x: Tensor) -> Tensor:
    """Dense, with the channels where x has them; also for the gradient of x."""
    return torch.empty_like(x, memory_format=_memory_format(x))


# --- launch: cpu ------------------------------------------------------------------------------------------------------


def _cpu_arguments(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple:
    """What the kernels of both directions take first."""
    inputs = (argument(x), argument(weight[:, 0]), argument(bias))
    return tuple(x.shape), inputs, x.dtype == torch.float64, torch.get_num_threads()


def _cpu_forward(x, weight, bias) -> Tensor:
    y = fresh(_new_output(x))
    check(_native.C.dwconv_silu_forward(*_cpu_arguments(x, weight, bias), argument(y)))
    return y


def _cpu_backward(dy, x, weight, bias) -> list[Tensor | None]:
    dx, dtype = fresh(_new_output(x)), compute_dtype(x)
    dweight, dbias = (None if t is None else torch.empty(t.shape, dtype=dtype) for t in (weight, bias))
    outputs = (argument(dy), argument(dx), address(dweight), address(dbias))
    check(_native.C.dwconv_silu_backward(*_cpu_arguments(x, weight, bias), *outputs))
    return [dx, dweight, dbias]


# --- launch: cuda -----------------------------------------------------------------------------------------------------


def _cuda_forward(x, weight, bias) -> Tensor:
    y = _new_output(x)
    with launching(x) as stream:
        weight, bias = as_float(weight[:, 0]), None if bias is None else as_float(bias)
        inputs = (argument(x), argument(weight), argument(bias))
        check_cuda(_native.C.cuda_dwconv_silu_forward(tuple(x.shape), inputs, stream, argument(y)))
    return y


def _cuda_backward(dy, x, weight, bias) -> list[Tensor | None]:
    dx, taps = _new_output(x), weight[0].numel()
    with launching(x) as stream:
        weight, bias = as_float(weight[:, 0]), None if bias is None else as_float(bias)
        parts = _native.C.cuda_dwconv_silu_parts(*x.shape, gpu(x.device)[0])
        partials = torch.empty(parts, x.shape[1], taps + 1, dtype=torch.float32, device=x.device)
        inputs = (argument(x), argument(weight), argument(bias))
        outputs = (argument(dy), argument(dx), address(partials), parts)
        check_cuda(_native.C.cuda_dwconv_silu_backward(tuple(x.shape), inputs, stream, *outputs))
    dweight, dbias = partials.sum(0).split((taps, 1), -1)
    return [dx, dweight.reshape(-1, 1, *weight.shape[1:]), dbias[:, 0]]


# --- launch: triton ---------------------------------------------------------------------------------------------------


def _triton_forward(x, weight, bias) -> Tensor:
    from mtlkit.kernels import dwconv_silu as kernels

    return kernels.forward(x, weight, bias)


def _triton_backward(dy, x, weight, bias) -> tuple[Tensor | None, ...]:
    from mtlkit.kernels import dwconv_silu as kernels

    return kernels.backward(dy, x, weight, bias)


# --- forward and backward ---------------------------------------------------------------------------------------------

_FORWARD = {"cpu": _cpu_forward, "cuda": _cuda_forward, "triton": _triton_forward}
_BACKWARD = {"cpu": _cpu_backward, "cuda": _cuda_backward, "triton": _triton_backward}


def _forward(backend, x, weight, bias) -> Tensor:
    """The kernel."""
    return _FORWARD[backend](x, weight, bias) if x.shape[0] > 0 else _new_output(x)


def _backward(backend, dy, x, weight, bias) -> list[Tensor | None]:
    """The kernel: the gradient of each input, None for a bias that was not given."""
    inputs = (x, weight, bias)
    if x.shape[0] == 0:
        return [_new_output(x), *(None if t is None else torch.zeros_like(t) for t in (weight, bias))]
    dx, *gradients = _BACKWARD[backend](dy, *inputs)
    parameters = zip(gradients, (weight, bias), strict=True)
    return [dx, *(None if t is None else g.to(t.dtype).contiguous() for g, t in parameters)]


class _DwconvSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, backend, *inputs):
        ctx.backend = backend
        ctx.save_for_backward(*inputs)
        return _forward(backend, *inputs)

    @staticmethod
    def backward(ctx, dy):
        inputs = ctx.saved_tensors
        return None, *first_order_only("dwconv_silu", _backward(ctx.backend, dy, *inputs), (dy, *inputs))


# --- for the dispatcher: torch.compile, torch.export ------------------------------------------------------------------


@torch.library.custom_op("mtlkit::dwconv_silu", mutates_args=())
def _op(backend: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _forward(backend, x, weight, bias)


@_op.register_fake
def _(backend, x, weight, bias):
    return _new_output(x)


@torch.library.custom_op("mtlkit::dwconv_silu_backward", mutates_args=())
def _op_backward(backend: str, dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor]:
    return [g for g in _backward(backend, dy, x, weight, bias) if g is not None]


@_op_backward.register_fake
def _(backend, dy, x, weight, bias):
    parameters = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (weight, bias) if t is not None]
    return [_new_output(x), *parameters]


def _op_setup(ctx, inputs, output) -> None:
    ctx.backend, *tensors = inputs
    ctx.save_for_backward(*tensors)


def _op_grad(ctx, dy):
    inputs = ctx.saved_tensors
    present = iter(_op_backward(ctx.backend, dy, *inputs))
    return None, *(None if t is None else next(present) for t in inputs)


_op.register_autograd(_op_grad, setup_context=_op_setup)


# --- public -----------------------------------------------------------------------------------------------------------


def dwconv_silu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Depthwise 3 x 3 convolution with padding 1 and stride 1, plus a bias, then SiLU.

    Inputs may be float32, float64, bfloat16 or float16, mixed as they come, of any strides; pixels whose channels lie
    side by side are the fast case, wherever the pixels themselves lie. Sums are float32 (float64 where x is).
    First-order gradients flow to every tensor; the backward pass computes the convolution anew instead of keeping it.
    Results repeat bit by bit on the same machine and thread count.

    Why it pays, measured on a 2-core AVX-512 machine with 2 threads, float32, against F.conv2d and F.silu on a dense
    channels-last x: at 56 x 56 with D = 96, 1.6 times as fast forward and 1.7 times with the backward pass; at 7 x 7
    with D = 768, 1.8 and 1.9 times. A whole SS2D layer at 56 x 56 takes 2.48 ms forward with it, 2.69 ms without.

    Args:
        x: input, (B, D, H, W).
        weight: one filter a channel, (D, 1, 3, 3).
        bias: added before SiLU, (D,).

    Returns:
        The output, (B, D, H, W) in the dtype of x: channels-last where the channels of x lie side by side, otherwise
        contiguous.

    Raises:
        TypeError: an argument is no floating-point tensor.
        ValueError: shapes or devices do not fit together, or the backend that was asked for cannot serve.

    Example:
        >>> import torch, mtlkit
        >>> x = torch.randn(1, 8, 7, 5).to(memory_format=torch.channels_last)
        >>> mtlkit.ops.dwconv_silu(x, torch.randn(8, 1, 3, 3), torch.randn(8)).shape
        torch.Size([1, 8, 7, 5])
    """
    _check(x, weight, bias)
    backend = choose("dwconv_silu", SERVED, x.device, single_precision_only(x, weight, bias))
    if backend == "reference":
        return dwconv_silu_reference(x, weight, bias)
    if backend == "torch":
        return dwconv_silu_torch(x, weight, bias)
    if traced(x, weight, bias):
        return _op(backend, x, weight, bias)
    return _DwconvSilu.apply(backend, x, weight, bias)
