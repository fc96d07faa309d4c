"""Checks of arguments: each error names the argument, the expected value and the one it got."""

from collections.abc import Collection

import torch
from torch import Tensor

from mtlkit._text import shown

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INDICES = (torch.int32, torch.int64)


def fits(value: object, sizes: tuple[int, ...], device: torch.device) -> bool:
    """Whether a value passes `check_tensor`, `check_shape` and `check_device`, in one look.

    Operators with many parameters ask this first, and make the checks, which say what is wrong, only if it is False.
    """
    return (
        isinstance(value, Tensor)
        and not value.is_nested
        and value.shape == sizes
        and value.dtype in FLOATS
        and value.layout == torch.strided
        and value.device == device
    )


def check_tensor(name: str, value: object, dims: int | tuple[int, ...]) -> None:
    """Raises unless `value` is a dense floating-point tensor with `dims` dimensions.

    Raises:
        TypeError: it is not a tensor, or no backend supports its dtype.
        ValueError: it has another number of dimensions, or a sparse or nested layout.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.is_nested:
        raise ValueError(f"{name}: expected a dense tensor, got a nested one")
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, float64, bfloat16 or float16, got {value.dtype}")
    if value.layout != torch.strided:
        raise ValueError(f"{name}: expected a dense tensor, got layout {value.layout}")
    wanted = dims if isinstance(dims, tuple) else (dims,)
    if value.dim() not in wanted:
        raise ValueError(
            f"{name}: expected {' or '.join(map(str, wanted))} dimensions, got {value.dim()} with shape "
            f"{tuple(value.shape)}"
        )


def check_shape(name: str, value: Tensor, letters: str, *sizes: int) -> None:
    """Raises a ValueError unless `value` has the shape `sizes`; the message also shows it as `letters`."""
    if value.shape != sizes:
        raise ValueError(f"{name}: expected shape {letters} = {tuple(sizes)}, got {tuple(value.shape)}")


def check_indices(name: str, value: object, letters: str, *sizes: int) -> None:
    """Raises unless `value` is a tensor of 32-bit or 64-bit integers with the shape `sizes`.

    Raises:
        TypeError: it is not a tensor, or has another dtype.
        ValueError: it has another shape.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.dtype not in INDICES:
        raise TypeError(f"{name}: expected int32 or int64, got {value.dtype}")
    check_shape(name, value, letters, *sizes)


def check_device(**tensors: Tensor | None) -> None:
    """Raises a ValueError unless all tensors are on the device of the first."""
    first_name, first = "", None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first_name, first = name, tensor.device
        elif tensor.device != first:
            raise ValueError(f"{name}: expected device {first}, where {first_name} is, got {tensor.device}")


def check_float_dtype(name: str, dtype: object) -> None:
    """Raises a TypeError unless `dtype` is a possible dtype of the operators' outputs."""
    if dtype not in FLOATS:
        raise TypeError(f"{name}: expected torch.float32, float64, bfloat16 or float16, got {shown(dtype)}")


def check_channels_last(name: str, value: Tensor, channels: int) -> None:
    """Raises unless `value` is (B, H, W, C) with C = `channels` and at least one pixel.

    Raises:
        TypeError: it is not a floating-point tensor.
        ValueError: it has another shape.
    """
    check_tensor(name, value, 4)
    _, height, width, have = value.shape
    if have != channels or height < 1 or width < 1:
        raise ValueError(
            f"{name}: expected shape (B, H, W, {channels}) with H and W at least 1, got {tuple(value.shape)}; "
            "channels are the last dimension"
        )


def check_channels_first(name: str, value: Tensor, channels: int) -> None:
    """Raises unless `value` is (B, C, H, W) with C = `channels` and at least one pixel.

    Raises:
        TypeError: it is not a floating-point tensor.
        ValueError: it has another shape.
    """
    check_tensor(name, value, 4)
    _, have, height, width = value.shape
    if have != channels or height < 1 or width < 1:
        raise ValueError(
            f"{name}: expected shape (B, {channels}, H, W) with H and W at least 1, got {tuple(value.shape)}; "
            "channels are dimension 1"
        )


def check_vectors(name: str, value: Tensor, channels: int, batch: int) -> None:
    """Raises unless `value` is (B, C) with B = `batch` and C = `channels`.

    Raises:
        TypeError: it is not a floating-point tensor.
        ValueError: it has another shape.
    """
    check_tensor(name, value, 2)
    if value.shape != (batch, channels):
        raise ValueError(f"{name}: expected shape (B, C) = {(batch, channels)}, got {tuple(value.shape)}")


def check_positive(**values: float) -> None:
    """Raises a ValueError unless every value is above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}: expected a number above 0, got {shown(value)}")


def check_probability(**values: float) -> None:
    """Raises a ValueError unless every value is in [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}: expected a probability in [0, 1), got {shown(value)}")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raises a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {shown(value)}")
