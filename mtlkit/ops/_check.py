"""Checks of arguments: each error names the argument, what was expected and what came."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_tensor(name: str, value: object, dims: int | tuple[int, ...]) -> None:
    """Raises unless `value` is a dense floating-point tensor with so many dimensions.

    Raises:
        TypeError: no tensor, or of a dtype that no backend computes in.
        ValueError: another count of dimensions, or a sparse layout.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
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
    """Raises a ValueError unless `value` has the shape `sizes`, which the message spells as `letters` too."""
    if value.shape != sizes:
        raise ValueError(f"{name}: expected shape {letters} = {tuple(sizes)}, got {tuple(value.shape)}")


def check_device(**tensors: Tensor | None) -> None:
    """Raises a ValueError unless all tensors are on the device of the first."""
    (first_name, first), *others = [(name, t) for name, t in tensors.items() if t is not None]
    for name, tensor in others:
        if tensor.device != first.device:
            raise ValueError(f"{name}: expected device {first.device}, where {first_name} is, got {tensor.device}")


def check_float_dtype(name: str, dtype: object) -> None:
    """Raises a TypeError unless `dtype` is one that operators write."""
    if dtype not in FLOATS:
        raise TypeError(f"{name}: expected torch.float32, float64, bfloat16 or float16, got {dtype!r}")
