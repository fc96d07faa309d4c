"""Resizing without torch, bitwise the same on every machine.

Images are resized like uint8 images by torchvision's transforms with antialias on a CPU with AVX2: first columns, then
rows, each with a triangle filter as wide as the scale and 15-bit integer weights, with rounding in between. All
products and sums are integers that floats represent exactly, so the order of summation does not matter.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image

__all__ = ["resize", "resize_map", "resize_nearest"]

BLOCK = 16  # results that are computed from the same part of a line
WEIGHT_BITS, MOST_BITS = 15, 22
SINGLE = 16  # bits of weights for which float32 holds the sums with uint8


class _Block(NamedTuple):
    """Some results of a line, and the part of the line that they are computed from."""

    results: slice
    piece: slice
    weights: np.ndarray  # (results, piece)


@lru_cache(maxsize=32)
def _blocks(old: int, new: int) -> tuple[list[_Block], int]:
    """The weights that resize lines from `old` to `new` numbers, multiplied by a power of two, and that power."""
    scale = old / new
    reach = max(scale, 1.0)
    center = scale * (np.arange(new) + 0.5)
    first = np.maximum((center - reach + 0.5).astype(np.int64), 0)
    count = np.minimum((center + reach + 0.5).astype(np.int64), old) - first
    taps = np.arange(count.max())
    weights = np.maximum(1 - np.abs(taps + (first - center + 0.5)[:, None]) * (1 / reach), 0)  # (new, taps)
    weights[taps >= count[:, None]] = 0
    weights /= weights.sum(1, keepdims=True)
    bits = next(
        n for n in range(MOST_BITS + 1) if n == MOST_BITS or int(0.5 + weights.max() * 2 ** (n + 1)) >= 2**WEIGHT_BITS
    )
    whole = (0.5 + weights * 2**bits).astype(np.int64).astype(np.float32 if bits <= SINGLE else np.float64)
    blocks = []
    for start in range(0, new, BLOCK):
        rows = range(start, min(start + BLOCK, new))
        low, high = int(first[start]), int((first + count)[rows.start : rows.stop].max())
        dense = np.zeros((len(rows), high - low), whole.dtype)
        for i, row in enumerate(rows):
            dense[i, first[row] - low : first[row] - low + count[row]] = whole[row, : count[row]]
        blocks.append(_Block(slice(rows.start, rows.stop), slice(low, high), dense))
    return blocks, bits


def _rounded(sums: np.ndarray, bits: int) -> np.ndarray:
    """Converts weighted sums to numbers from 0 to 255; assignment to uint8 drops the fraction."""
    sums += 2.0 ** (bits - 1)
    sums *= 2.0**-bits
    return sums


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image, bilinear with antialias.

    Args:
        pixels: (C, H, W), uint8.
        height: height of the result.
        width: width of the result.

    Returns:
        (C, height, width), uint8; `pixels` itself if that is its size.

    Example:
        >>> import numpy as np
        >>> from mtlkit.data.resizing import resize
        >>> resize(np.array([[[0, 100, 200, 100]]], np.uint8), 1, 2).tolist()
        [[[71, 143]]]
    """
    channels, rows, columns = pixels.shape
    if columns != width:
        blocks, bits = _blocks(columns, width)
        narrow = np.empty((channels, rows, width), np.uint8)
        for block in blocks:
            piece = pixels[..., block.piece].astype(block.weights.dtype)
            narrow[..., block.results] = _rounded(piece @ block.weights.T, bits)
        pixels = narrow
    if rows != height:
        blocks, bits = _blocks(rows, height)
        low = np.empty((channels, height, width), np.uint8)
        for block in blocks:
            piece = pixels[:, block.piece].astype(block.weights.dtype)
            low[:, block.results] = _rounded(block.weights @ piece, bits)
        pixels = low
    return pixels


def resize_nearest(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes labels (H, W) by nearest neighbour.

    Example:
        >>> import numpy as np
        >>> from mtlkit.data.resizing import resize_nearest
        >>> resize_nearest(np.array([[1, 2, 3, 4]]), 2, 2).tolist()
        [[1, 3], [1, 3]]
    """

    def places(old: int, new: int) -> np.ndarray:  # in float32, as in torch
        return np.minimum((np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(np.int64), old - 1)

    rows, columns = labels.shape
    return labels[places(rows, height)[:, None], places(columns, width)]


def resize_map(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes a float32 map (H, W), bilinear with antialias.

    Example:
        >>> import numpy as np
        >>> from mtlkit.data.resizing import resize_map
        >>> resize_map(np.array([[0, 1]], np.float32), 1, 4).tolist()
        [[0.0, 0.25, 0.75, 1.0]]
    """
    image = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
