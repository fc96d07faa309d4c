"""What stored numbers mean: one rule for PNG, TIFF, JPEG, BMP and DICOM alike, and the limit on how many are read.

Numbers become grey between black and white; so do those of each of three colours. Where a file says what these are, as
by a DICOM window, they are taken from it. Otherwise, by the numbers of all frames of the file, so that a film has one
scale:

    unsigned, up to 8 bits         0 is black, 2^bits - 1 white: the numbers as they are
    unsigned, wider                0 is black, 2^n - 1 white, with the smallest n >= 8 that holds the maximum
    float from 0 to 1              0 is black, 1 white; above, as for unsigned numbers
    negative numbers, and all      the minimum is black, the maximum white
    that DICOM calls signed

Of DICOM these are the stored numbers, without padding: slope and intercept change nothing, but for a negative slope,
which turns black and white. Behind a modality LUT they are its values; of a VOI LUT, the entries of the table.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtlkit.errors import TooLargeError

MAX_PIXELS = 100_000_000  # a frame; the largest mammograms have 25 million


class Scale(NamedTuple):
    """The numbers that are black and white, and what is worth telling of them."""

    black: float
    white: float
    remark: str = ""


class Loaded(NamedTuple):
    """An image as it is meant to be seen."""

    pixels: np.ndarray  # (H, W, 3), uint8
    spacing: tuple[float, float] | None = None  # mm between rows and between columns
    conflict: str = ""  # what else the file says of that
    remarks: tuple[str, ...] = ()  # how its numbers were read, and what in the file could not be used


def check_pixels(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Raises a TooLargeError where a frame has more pixels than are read."""
    if width * height > max_pixels:
        raise TooLargeError(
            f"expected at most {max_pixels:,} pixels a frame (max_pixels), got {width} x {height} = {width * height:,}",
            path=path,
        )


def extent(values: np.ndarray, hidden: np.ndarray | None = None) -> tuple[float, float] | None:
    """The least and the greatest finite number, without the `hidden` ones; None where there is none."""
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        hidden = ~finite if hidden is None else hidden | ~finite
    if hidden is not None and hidden.any():
        values = values[~hidden]
    return (float(values.min()), float(values.max())) if values.size else None


def joint(extents: list[tuple[float, float] | None]) -> tuple[float, float] | None:
    """What several frames span together."""
    known = [one for one in extents if one is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def choose_scale(span: tuple[float, float] | None, dtype: np.dtype, bits: int) -> Scale:
    """Black and white of numbers of which the file does not say it.

    Args:
        span: of all frames, see `extent`.
        dtype: of the numbers.
        bits: that the file has for each.

    Example:
        >>> import numpy as np
        >>> from mtlkit.data.pixels import choose_scale
        >>> choose_scale((0, 3000), np.dtype("uint16"), 16)
        Scale(black=0.0, white=4095.0, remark='12 bits in 16, stretched by 4095')
    """
    low, high = span or (0.0, 0.0)
    if low < 0:
        return Scale(low, high, f"negative numbers, stretched from {low:g} to {high:g}")
    if dtype.kind != "f" and bits <= 8:
        return Scale(0.0, 2.0**bits - 1)
    if dtype.kind == "f" and high <= 1 + 1e-3:
        return Scale(0.0, 1.0, "float from 0 to 1, multiplied by 255")
    depth = max(8, int(np.ceil(high)).bit_length())
    bits = max(bits, depth)  # some files announce fewer than they use
    white = 2.0**depth - 1
    what = "float that fits" if dtype.kind == "f" else f"{depth} bits in {bits},"
    if dtype.kind == "f":
        return Scale(0.0, white, f"{what} {depth} bits, stretched by {white:.0f}")
    return Scale(0.0, white, "" if depth == bits else f"{what} stretched by {white:.0f}")


def render(values: np.ndarray, scale: Scale, hidden: np.ndarray | None = None, *, inverted: bool = False) -> np.ndarray:
    """Numbers as brightness, float32 in [0, 1]: `hidden` ones, and those that are not finite, are black."""
    span = scale.white - scale.black
    if span <= 0:
        return np.zeros(values.shape, np.float32)
    unit = ((values - np.asarray(scale.black, np.float64)) * (1 / span)).astype(np.float32).clip(0, 1)
    if inverted:
        unit = 1 - unit
    if values.dtype.kind == "f":
        unit[~np.isfinite(values)] = 0
    if hidden is not None:
        unit[hidden] = 0
    return unit


def eight_bits(unit: np.ndarray) -> np.ndarray:
    """Brightness in [0, 1] as uint8."""
    return (unit * 255).round().astype(np.uint8)
