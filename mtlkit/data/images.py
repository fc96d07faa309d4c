"""Reading images, from whatever file, as viewers show them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from mtlkit._files import check_file
from mtlkit.data.dicom import pixel_spacing
from mtlkit.data.dicom_file import is_dicom, open_dicom
from mtlkit.data.dicom_pixels import render_dicom
from mtlkit.data.pixels import (
    MAX_PIXELS,
    Loaded,
    check_pixels,
    choose_scale,
    eight_bits,
    extent,
    joint,
    render,
)
from mtlkit.errors import DataError

__all__ = ["count_frames", "read_image"]

FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "GIF", "WEBP", "JPEG2000", "PPM")  # EPS would run a program
WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
SUBFILE, BITS, PHOTOMETRIC, WHITE_IS_ZERO = 254, 258, 262, 0  # tags of TIFF
_limit = threading.Lock()


@contextmanager
def opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """An image of Pillow's, of which nothing is decoded before its size is known.

    Raises:
        DataError: it cannot be read, then or inside.
        TooLargeError: it has more pixels than are read.
    """
    check_file(path, "an image file")
    try:
        with path.open("rb") as file, _open(file) as image:  # by a name, Pillow maps turned TIFFs to the wrong shape
            width, height = image.size
            check_pixels(path, width, height, max_pixels)
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError("there is no such file", path=path) from None
    except MemoryError:
        raise DataError("there is not enough memory to read it", path=path) from None
    except UnidentifiedImageError:
        raise DataError("cannot be read as an image (it is none of a known format)", path=path) from None
    except Exception as error:  # Pillow raises many kinds on damaged files
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"cannot be read as an image ({words.splitlines()[0]})", path=path) from None


def _open(file: BinaryIO) -> Image.Image:
    """Opens without Pillow's own limit, which is one for the process."""
    with _limit:
        Image.init()
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


# --- frames -----------------------------------------------------------------------------------------------------------


def count_frames(path: str | Path) -> int:
    """How many images a file holds: frames of DICOM, pages of TIFF.

    Raises:
        DataError: the file cannot be read.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> from mtlkit.data import count_frames
        >>> count_frames(get_testdata_file("examples_ybr_color.dcm"))
        30
    """
    path = Path(path)
    if is_dicom(path):
        return open_dicom(path, max_pixels=2**32).frames
    with opened(path, 2**32) as image:
        return len(_pages(image))


def _pages(image: Image.Image) -> list[int]:
    """The pages of a TIFF that are no thumbnails of others; the one image of any other file."""
    if not isinstance(image, TiffImageFile):
        return [0]
    pages = []
    for page in range(image.n_frames):
        image.seek(page)
        if not int(image.tag_v2.get(SUBFILE, 0)) & 1:
            pages.append(page)
    return pages or [0]


def seek(image: Image.Image, path: Path, frame: int | None, max_pixels: int) -> list[int]:
    """Goes to a frame; returns all pages."""
    pages = _pages(image)
    if frame is None and len(pages) > 1:
        raise DataError(f"holds {len(pages)} pages where one image is expected", path=path)
    if frame is not None and not 0 <= frame < len(pages):
        raise DataError(f"there is no frame {frame}, only 0 to {len(pages) - 1}", path=path)
    if image.format == "TIFF":
        image.seek(pages[frame or 0])
        check_pixels(path, *image.size, max_pixels)
    return pages


# --- pixels -----------------------------------------------------------------------------------------------------------


def upright(image: Image.Image, remarks: list[str]) -> Image.Image:
    """The image as viewers turn it, by its EXIF orientation."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except (SyntaxError, ValueError, TypeError, OSError, KeyError, IndexError, OverflowError):
        remarks.append("its EXIF data cannot be read, so that it is shown as it is stored")
        return image


def _bits(image: Image.Image) -> int:
    """How many bits the file has for each number."""
    bits = 32 if image.mode in ("I", "F") else 16
    return int(np.atleast_1d(image.tag_v2.get(BITS, bits))[0]) if isinstance(image, TiffImageFile) else bits


def _grey(values: np.ndarray, image: Image.Image, path: Path, pages: list[int], remarks: list[str]) -> np.ndarray:
    """Numbers of more than 8 bits, stretched to (H, W) uint8."""
    span = extent(values)
    if len(pages) > 1:
        stat = path.stat()
        span = _film_extent(path, (stat.st_mtime_ns, stat.st_size))
    scale = choose_scale(span, values.dtype, _bits(image))
    if scale.remark:
        remarks.append(scale.remark)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        remarks.append("holds values that are no numbers, which are black")
    inverted = isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
    with np.errstate(all="ignore"):  # floats that are no numbers become black
        return eight_bits(render(values, scale, inverted=inverted))


@lru_cache(maxsize=8)
def _film_extent(path: Path, _version: tuple[int, int]) -> tuple[float, float] | None:
    """What the pages of a TIFF span together."""
    with opened(path, 2**32) as image:
        extents = []
        for page in _pages(image):
            image.seek(page)
            if image.mode in WIDE:
                extents.append(extent(np.asarray(image)))
        return joint(extents)


def load_image(path: Path, frame: int | None = None, max_pixels: int = MAX_PIXELS) -> Loaded:
    """As `read_image`, with what the file says of itself.

    Raises:
        DataError: there is no such file, it cannot be read, or it holds several frames and none is named.
        TooLargeError: a frame has more pixels than are read.
    """
    check_file(path, "an image file")
    if is_dicom(path):
        unit, tags = render_dicom(path, frame, max_pixels)
        pixels = eight_bits(unit)
        pixels = np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels
        return Loaded(pixels, pixel_spacing(tags), tuple(tags.remarks))
    remarks: list[str] = []
    with opened(path, max_pixels) as image:
        pages = seek(image, path, frame, max_pixels)
        sixteen = _sixteen_bit_colours(image)
        image.load()
        whole = upright(image, remarks)
        if image.mode in WIDE:
            pixels = np.repeat(_grey(np.asarray(whole), image, path, pages, remarks)[..., None], 3, 2)
        else:
            pixels = np.asarray(whole.convert("RGB"))
        if sixteen and pixels.max(initial=0) < 128:  # Pillow keeps the upper byte of each
            text = "its colours of 16 bits do not use them all: save it with 8 bits, or as grey"
            raise DataError(text, path=path)
    return Loaded(pixels, None, tuple(remarks))


def _sixteen_bit_colours(image: Image.Image) -> bool:
    """Whether Pillow is about to cut colours of 16 bits to 8."""
    modes = [str(tile[3]) for tile in getattr(image, "tile", ())]
    return image.mode in ("RGB", "RGBA") and any(";16" in mode for mode in modes)


def read_image(path: str | Path, frame: int | None = None, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image as colours, as viewers show it: turned by its orientation, and with the brightness that its file means.

    Numbers of more than 8 bits are stretched by the depth that holds their maximum (see `mtlkit.data.pixels`), so that
    the same pixels give the same image in any file.

    Args:
        path: PNG, JPEG, BMP, TIFF of any depth, or DICOM.
        frame: which frame of a DICOM file or page of a TIFF, from 0; needed where it holds several.
        max_pixels: the most that a frame may have.

    Returns:
        (H, W, 3), uint8.

    Raises:
        DataError: there is no such file, it cannot be read, or it holds several frames and none is named.
        TooLargeError: a frame has more pixels than `max_pixels`.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> from mtlkit.data import read_image
        >>> read_image(get_testdata_file("CT_small.dcm")).shape
        (128, 128, 3)
    """
    return load_image(Path(path), frame, max_pixels).pixels
