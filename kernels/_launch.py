"""Shared by the launchers: dtype checks, the device guard, exact division. It does not load Triton."""

from contextlib import nullcontext

import torch
from torch import Tensor

# --- dtypes, devices --------------------------------------------------------------------------------------------------

SERVED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_dtypes(op: str, *tensors: Tensor | None) -> None:
    """Raises unless the kernels support every tensor's dtype.

    Raises:
        TypeError: the dtype of a tensor is not float32, bfloat16 or float16.
    """
    for tensor in tensors:
        if tensor is not None and tensor.dtype not in SERVED_DTYPES:
            raise TypeError(f"{op}: the triton backend expects float32, bfloat16 or float16, got {tensor.dtype}")


def on_device(tensor: Tensor):
    """Makes the tensor's GPU the current one while a kernel is launched."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


# SMs without a GPU: tests in the interpreter split like an H200.
DEFAULT_PROCESSORS = 132


def processors(tensor: Tensor) -> int:
    """Streaming multiprocessors (compute units) of the tensor's GPU."""
    if not tensor.is_cuda:
        return DEFAULT_PROCESSORS
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


# --- offsets ----------------------------------------------------------------------------------------------------------


def division(divisor: int) -> tuple[int, int]:
    """(multiplier, shift) with p // divisor = (p * multiplier) >> (32 + shift) for every 0 <= p < 2^31.

    With k = floor(log2(divisor - 1)) and multiplier = ceil(2^(32 + k) / divisor) < 2^32, the excess of
    multiplier * divisor over 2^(32 + k) is below divisor <= 2^(k + 1), hence p times it below 2^(32 + k). The
    multiplier comes as the int32 of the same bits. For divisor 1, (0, 0): the quotient is 0, as `lines` in
    _ss2d_tiles.py wants it.
    """
    if divisor == 1:
        return 0, 0
    shift = (divisor - 1).bit_length() - 1
    multiplier = -(-(1 << (32 + shift)) // divisor)
    return multiplier - (1 << 32) if multiplier >= 1 << 31 else multiplier, shift


def is_wide(*tensors: Tensor) -> bool:
    """Whether an offset inside one image (all axes except the first) can exceed 31 bits."""
    return any(
        sum((n - 1) * abs(s) for n, s in zip(t.shape[1:], t.stride()[1:], strict=True)) >= 1 << 31 for t in tensors
    )


# --- gradients --------------------------------------------------------------------------------------------------------


def like(gradient: Tensor, tensor: Tensor) -> Tensor:
    """The gradient in the dtype and layout of its tensor; copied only if needed."""
    if gradient.dtype == tensor.dtype and gradient.stride() == tensor.stride():
        return gradient
    return torch.empty_like(tensor).copy_(gradient)
