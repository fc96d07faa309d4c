"""Reads masks; the kind of file decides which pixels are lesion.

    index       a palette: index 0 is background, all others are lesion; a palette of black and one other grey counts as
    grey
    alpha       if transparency varies, and either all or none of the opaque pixels are black: opaque is lesion
    colour      black is background, every colour is lesion
    grey        two values in any bit depth: the greater is lesion; values between them, from a soft edge or JPEG noise,
                are split in the middle; a single value is lesion unless it is 0

Anything else, such as several grey labels, raises an error that lists the values.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mtlkit.data.dicom_file import is_dicom, open_dicom
from mtlkit.data.dicom_pixels import choose_frame, decode
from mtlkit.data.images import WIDE, opened, seek, stored_numbers, upright, upright_numbers
from mtlkit.data.pixels import MAX_PIXELS
from mtlkit.data.records import Finding, Record
from mtlkit.errors import DataError, MismatchError

__all__ = ["read_mask"]

FULL = 0.95  # of the pixels
LOSSY = ("JPEG", "MPO", "WEBP")
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"  # DICOM's segmentation class: one frame per segment
VOID = 255  # index for ignored pixels in labelling tools
LABELS = 16  # more values than this are not labels
FAINT = 16  # smallest difference between two values that JPEG noise does not explain
INTERIOR = 0.02  # fraction of the pixels above background from which a third value is not an edge
EDGE = 0.25  # fraction of all pixels from which values between the two are not an edge, ...
TINY = 256  # ... unless there are fewer than these


def read_mask(paths: Sequence[str | Path], size: tuple[int, int], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads the lesion, merged from any number of masks.

    Args:
        paths: masks in PNG, JPEG, BMP, TIFF or DICOM, see `mtlkit.data.masks`; none gives an empty mask.
        size: (H, W) that they must have.
        max_pixels: maximal number of pixels in a mask.

    Returns:
        (H, W), uint8, 0 or 1.

    Raises:
        DataError: a mask cannot be read, has another size, or does not say which pixels are lesion.

    Example:
        >>> from mtlkit.data import read_mask
        >>> read_mask([], (2, 3)).any()
        np.False_
    """
    merged = np.zeros(size, dtype=np.uint8)
    for path in map(Path, paths):
        lesion = _dicom(path, max_pixels) if is_dicom(path) else _picture(path, max_pixels)
        if lesion.shape != tuple(size):
            height, width = lesion.shape
            text = f"the mask has {width} x {height} pixels, its image {size[1]} x {size[0]}"
            raise MismatchError(text, path=path)
        merged |= lesion
    return merged


def odd_mask(record: Record, mask: np.ndarray) -> Iterator[Finding]:
    """A finding if the merged mask of a record is empty or full, or not empty although it should be."""
    if not record.masks:
        return
    share = mask.mean()
    if share == 0 and not record.without_lesion:
        yield Finding("warning", "empty mask", record.image, "its mask is empty")
    if share > 0 and record.without_lesion:
        yield Finding("warning", "lesion in a normal image", record.image, "its mask is not empty")
    if share > FULL:
        yield Finding("warning", "full mask", record.image, "its mask covers nearly all of the image")


def _dicom(path: Path, max_pixels: int) -> np.ndarray:
    tags = open_dicom(path, pixels=True, max_pixels=max_pixels)
    frames: Sequence[int] = (choose_frame(tags, 0 if tags.text("SOPClassUID") == SEGMENTATION else None),)
    if tags.text("SOPClassUID") == SEGMENTATION:
        frames = range(tags.frames)
    lossy = tags.compressed and not any(word in tags.syntax for word in ("Lossless", "RLE"))
    lesion = np.zeros(tags.shape, bool)
    for index in frames:
        stored = decode(tags, index, max_pixels)
        if stored.ndim == 3:
            lesion |= _colours(stored[..., :3], path, lossy=lossy)
        elif tags.text("PhotometricInterpretation") == "MONOCHROME1":
            lesion |= _two_values(stored.max(initial=0) - stored, path, lossy=lossy)
        else:
            lesion |= _two_values(stored, path, lossy=lossy)
    return lesion


def _picture(path: Path, max_pixels: int) -> np.ndarray:
    with opened(path, max_pixels) as image:
        pages = seek(image, path, None, max_pixels)
        deep = None if image.mode in WIDE else stored_numbers(image, path, pages[0])
        image.load()
        lossy = image.format in LOSSY
        whole = upright(image, [])
        if deep is not None:  # 16-bit colours, of which Pillow has only the upper bytes
            return _deep(upright_numbers(deep, image, []), whole, path)
        if whole.mode == "P":
            return _index(whole, path)
        if whole.mode in ("LA", "La", "RGBA", "RGBa", "PA"):
            pixels = np.asarray(whole.convert("RGBA"))
            return _alpha(pixels[..., :3], pixels[..., 3], path, lossy=lossy)
        if whole.mode in ("1", "L", *WIDE):
            return _two_values(np.asarray(whole.convert("L") if whole.mode == "1" else whole), path, lossy=lossy)
        return _colours(np.asarray(whole.convert("RGB")), path, lossy=lossy)


def _index(image: Image.Image, path: Path) -> np.ndarray:
    """The lesion from a palette: by index, unless its colours are black and one other grey, or many greys."""
    indices, colours = np.asarray(image), np.asarray(image.convert("RGB"))
    used, where = np.unique(indices, return_index=True)
    shown = colours.reshape(-1, 3)[where]  # (N, 3)
    grey = bool((shown == shown[:, :1]).all())
    if grey and ((len(used) == 2 and shown.min() == 0) or len(used) > LABELS):
        return _two_values(colours[..., 0], path, lossy=False)
    if VOID in used and len(used) > 2:
        raise DataError(
            f"expected background and lesion, got the indices {_listed(indices)}: is 255 lesion?",
            path=path,
        )
    return indices != 0


def _deep(colours: np.ndarray, whole: Image.Image, path: Path) -> np.ndarray:
    """The lesion from 16-bit colours, (H, W, 3), or greys, (H, W), and the upper bytes of their transparency."""
    colours = colours if colours.ndim == 3 else np.repeat(colours[..., None], 3, 2)
    alpha = np.asarray(whole)[..., 3] if whole.mode == "RGBA" else np.full(colours.shape[:2], 255, np.uint8)
    return _alpha(colours, alpha, path, lossy=False)


def _alpha(colours: np.ndarray, alpha: np.ndarray, path: Path, *, lossy: bool) -> np.ndarray:
    """The lesion from transparency if that varies, otherwise from the colours."""
    if (alpha == alpha.flat[0]).all():
        return _colours(colours, path, lossy=lossy)
    opaque = _two_values(alpha, path, lossy=lossy)
    black = (colours.max(-1) == 0)[opaque]
    if black.any() and not black.all():
        text = f"expected opaque pixels to be all lesion, got {black.sum():,} of {black.size:,} that are black"
        raise DataError(text, path=path)
    return opaque


def _colours(pixels: np.ndarray, path: Path, *, lossy: bool) -> np.ndarray:
    """The lesion from colours (H, W, 3): everything that is not black, or the greater of two greys."""
    brightest = pixels.max(-1)
    if (pixels == pixels[..., :1]).all():
        return _two_values(brightest, path, lossy=lossy)
    if brightest.min() > (FAINT if lossy else 0):
        codes = (pixels.astype(np.int64) * (65536, 256, 1)).sum(-1)
        found = ", ".join(f"#{int(code):06x}" for code in np.unique(codes)[:8])
        raise DataError(f"expected a mask with black for background, got the colours {found}", path=path)
    if not lossy and len(np.unique(brightest)) <= LABELS:
        return brightest > 0
    return _two_values(brightest, path, lossy=lossy)


def _two_values(values: np.ndarray, path: Path, *, lossy: bool) -> np.ndarray:
    """The lesion from numbers (H, W), by the rules at the top of this file.

    Raises:
        DataError: there are more than two values, or they cannot be distinguished from JPEG noise.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError("expected a mask of two values, got NaN or infinite ones", path=path)
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.full(values.shape, low != 0)
    if lossy and high - low < FAINT and low > 255 - FAINT:
        return np.ones(values.shape, bool)
    if lossy and high - low < FAINT:
        text = f"expected a mask of two values, got {low:g} to {high:g}, which may be JPEG noise: save it as PNG"
        raise DataError(text, path=path)
    if not _is_two_values(values, low, high, lossy=lossy):
        raise DataError(f"expected a mask of two values, got {_listed(values)}: which are lesion?", path=path)
    return values > (low + high) / 2


def _is_two_values(values: np.ndarray, low: float, high: float, *, lossy: bool) -> bool:
    """Whether values between the two are only edges or noise and do not fill an area."""
    span = high - low
    if ((values == low) | (values == high)).all():
        return True
    count = len(np.unique(values))
    if values.dtype.kind in "iu" and high < 2 * LABELS:
        return False
    if lossy or count > LABELS:
        middle, noise = (values >= low + span / 4) & (values <= high - span / 4), span / 16
        if values.size >= TINY and middle.mean() > EDGE:
            return False
    else:
        middle, noise = (values != low) & (values < high - span / 8), 0.0
    flat = middle & (_local_range(values) <= noise)
    return bool(flat.sum() <= INTERIOR * (values > low + noise).sum())


def _local_range(values: np.ndarray) -> np.ndarray:
    """The difference between maximum and minimum of a pixel and its eight neighbours."""
    padded = np.pad(values.astype(np.float32), 1, mode="edge")
    height, width = values.shape
    shifted = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.maximum.reduce(shifted) - np.minimum.reduce(shifted)


def _listed(values: np.ndarray) -> str:
    """The values that occur; only the most frequent ones if there are many."""
    found, counts = np.unique(values, return_counts=True)
    frequent = np.sort(found[np.argsort(-counts, kind="stable")[:8]])
    more = f" and {len(found) - len(frequent)} more" if len(found) > len(frequent) else ""
    return ", ".join(f"{value:g}" for value in frequent.tolist()) + more
