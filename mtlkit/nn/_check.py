"""Checks of what goes into a layer: each error names the argument, what was expected and what came."""

from collections.abc import Collection

from torch import Tensor

from mtlkit.ops._check import check_tensor


def check_channels_last(name: str, value: Tensor, channels: int) -> None:
    """Raises unless `value` is (B, H, W, C) with C = `channels` and at least one pixel.

    Raises:
        TypeError: no floating-point tensor.
        ValueError: another shape.
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
        TypeError: no floating-point tensor.
        ValueError: another shape.
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
        TypeError: no floating-point tensor.
        ValueError: another shape.
    """
    check_tensor(name, value, 2)
    if value.shape != (batch, channels):
        raise ValueError(f"{name}: expected shape (B, C) = {(batch, channels)}, got {tuple(value.shape)}")


def check_positive(**values: float) -> None:
    """Raises a ValueError unless every value is above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}: expected a number above 0, got {value!r}")


def check_probability(**values: float) -> None:
    """Raises a ValueError unless every value is in [0, 1)."""
    for name, value in values.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name}: expected a probability in [0, 1), got {value!r}")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raises a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
