"""The meaning of stored numbers, by one rule for PNG, TIFF, JPEG, BMP and DICOM, and the limit on their count.

Numbers become grey values between black and white, separately for each colour. If a file defines black and white, for
example by a DICOM window, these are used. Otherwise they depend on the numbers of all frames of the file, so that a
film has one scale:

    unsigned, up to 8 bits         0 is black, 2^bits - 1 white: the numbers as they are
    unsigned, wider                0 is black, 2^n - 1 white, with the smallest n >= 8 that holds the maximum
    float from 0 to 1              0 is black, 1 white; larger values as for unsigned numbers
    negative numbers, and all      the minimum is black, the maximum white
    that DICOM calls signed

For DICOM these are the stored numbers without padding; slope and intercept do not matter, except that a negative slope
swaps black and white. With a modality LUT they are its values, with a VOI LUT the entries of the table.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtlkit.errors import TooLargeError

MAX_PIXELS = 100_000_000  # per frame; the largest mammograms have 25 million


class Scale(NamedTuple):
    """The numbers for black and white, and a remark about them."""

    black: float
    white: float
    remark: str = ""


class Loaded(NamedTuple):
    """A rendered image."""

    pixels: np.ndarray  # (H, W, 3), uint8
    spacing: tuple[float, float] | None = None  # mm between rows and between columns
    conflict: str = ""  # remark on the spacing
    remarks: tuple[str, ...] = ()  # how its numbers were read, and which parts of the file were ignored


def check_pixels(path: Path, width: int, height: int, max_pixels: int) -> None:
    """Raises a TooLargeError if a frame has too many pixels."""
    if width * height > max_pixels:
        raise TooLargeError(
            f"expected at most {max_pixels:,} pixels a frame (max_pixels), got {width} x {height} = {width * height:,}",
            path=path,
        )


def extent(values: np.ndarray, hidden: np.ndarray | None = None) -> tuple[float, float] | None:
    """Minimum and maximum of the finite numbers, without the `hidden` ones; None if there are none."""
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        hidden = ~finite if hidden is None else hidden | ~finite
    if hidden is not None and hidden.any():
        values = values[~hidden]
    return (float(values.min()), float(values.max())) if values.size else None


def joint(extents: list[tuple[float, float] | None]) -> tuple[float, float] | None:
    """The range over several frames."""
    known = [one for one in extents if one is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def choose_scale(span: tuple[float, float] | None, dtype: np.dtype, bits: int) -> Scale:
    """The numbers for black and white if the file does not define them.

    Args:
        span: range over all frames, see `extent`.
        dtype: dtype of the numbers.
        bits: bits per number in the file.

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
    bits = max(bits, depth)  # some files declare fewer bits than they use
    white = 2.0**depth - 1
    what = "float that fits" if dtype.kind == "f" else f"{depth} bits in {bits},"
    if dtype.kind == "f":
        return Scale(0.0, white, f"{what} {depth} bits, stretched by {white:.0f}")
    return Scale(0.0, white, "" if depth == bits else f"{what} stretched by {white:.0f}")


def render(values: np.ndarray, scale: Scale, hidden: np.ndarray | None = None, *, inverted: bool = False) -> np.ndarray:
    """Numbers as brightness, float32 in [0, 1]; `hidden` and non-finite ones are black."""
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
