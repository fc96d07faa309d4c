"""Items for networks, in NumPy: files read, resized and normalised as in training.

Training and prediction, with or without PyTorch, prepare images with these functions.
"""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtlkit.data.images import load_image, read_image
from mtlkit.data.masks import odd_mask, read_mask
from mtlkit.data.pixels import MAX_PIXELS, Loaded
from mtlkit.data.records import VIEWS, Exam, Record
from mtlkit.data.resizing import resize, resize_nearest

__all__ = ["MEAN", "STD", "Lesion", "read_lesion", "read_views", "stack_views", "to_range"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class Lesion(NamedTuple):
    """An image and its mask, resized."""

    image: np.ndarray  # (3, size, size), uint8
    mask: np.ndarray  # (1, size, size), uint8 of 0 and 1
    loaded: Loaded  # the image in its original size

    @property
    def spacing(self) -> tuple[float, float]:
        """The distances between rows and columns of the resized image in mm; NaN if the file does not say."""
        if self.loaded.spacing is None:
            return math.nan, math.nan
        (height, width), size = self.loaded.pixels.shape[:2], self.image.shape[-1]
        return self.loaded.spacing[0] * height / size, self.loaded.spacing[1] * width / size


def read_lesion(record: Record, size: int, *, max_pixels: int = MAX_PIXELS, warn: bool = True) -> Lesion:
    """Reads the image of a record and the mask of its lesion.

    Args:
        record: the record; without masks, the mask is empty.
        size: pixels per side.
        max_pixels: maximal number of pixels in a file.
        warn: whether to warn about a mask that is empty or full, or not empty although its class has no lesion.

    Raises:
        DataError: a file is missing or damaged, or differs in size from its mask.
    """
    loaded = load_image(record.image, record.frame, max_pixels)
    mask = read_mask(record.masks, loaded.pixels.shape[:2], max_pixels=max_pixels)
    if warn:
        for finding in odd_mask(record, mask):
            warnings.warn(str(finding), stacklevel=2)
    image = resize(loaded.pixels.transpose(2, 0, 1), size, size)
    return Lesion(image, resize_nearest(mask, size, size)[None], loaded)


def read_views(exam: Exam, size: int, *, max_pixels: int = MAX_PIXELS) -> list[np.ndarray | None]:
    """Reads the views of an exam in the order of `VIEWS`, (1, size, size) uint8, right ones flipped; None if missing.

    Raises:
        DataError: a file is missing or damaged.
    """
    views: list[np.ndarray | None] = []
    for name, path in zip(VIEWS, exam.views, strict=True):
        if path is None:
            views.append(None)
            continue
        pixels = resize(read_image(path, max_pixels=max_pixels)[None, ..., 0], size, size)
        views.append(pixels[..., ::-1] if name.startswith("R") else pixels)
    return views


def to_range(pixels: np.ndarray, mean: Sequence[float] | None = MEAN, std: Sequence[float] | None = STD) -> np.ndarray:
    """Converts uint8 pixels (C, H, W) to float32 in [0, 1], normalised by mean and standard deviation unless None.

    Example:
        >>> import numpy as np
        >>> from mtlkit.data.items import to_range
        >>> to_range(np.full((3, 1, 1), 255, np.uint8), None, None).ravel().tolist()
        [1.0, 1.0, 1.0]
    """
    unit = pixels * np.float32(1 / 255)  # bitwise equal to torchvision's transforms
    if mean is not None and std is not None:
        unit -= np.asarray(mean, np.float32)[:, None, None]
        unit /= np.asarray(std, np.float32)[:, None, None]
    return unit


def stack_views(
    views: Sequence[np.ndarray | None], mean: Sequence[float] | None = MEAN, std: Sequence[float] | None = STD
) -> tuple[np.ndarray, np.ndarray]:
    """Normalises the views from `read_views`, and marks which are present.

    Returns:
        (4, 3, size, size), float32, zeros for a missing view, and (4,), bool.
    """
    size = next(view.shape[-1] for view in views if view is not None)
    whole = np.zeros((len(views), 3, size, size), np.float32)
    for place, view in zip(whole, views, strict=True):
        if view is not None:
            place[:] = to_range(np.repeat(view, 3, 0), mean, std)
    return whole, np.array([view is not None for view in views])
