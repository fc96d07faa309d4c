"""Reads images from any kind of file, as viewers show them."""

import io
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from mtlkit._files import check_file
from mtlkit.data.dicom_file import is_dicom, open_dicom
from mtlkit.data.dicom_pixels import render_dicom
from mtlkit.data.dicom_spacing import pixel_spacing
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
    """A Pillow image, not decoded before its size is known.

    Raises:
        DataError: it cannot be read, when it is opened or inside the block.
        TooLargeError: it has more pixels than are read.
    """
    check_file(path, "an image file")
    try:
        with (
            path.open("rb") as file,
            _open(file) as image,
        ):  # with a file name, Pillow maps rotated TIFFs to the wrong shape
            width, height = image.size
            check_pixels(path, width, height, max_pixels)
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError("there is no such file", path=path) from None
    except MemoryError:  # not the file's fault, so skip_bad must not drop it
        raise MemoryError(f"{path}: there is not enough memory to read it") from None
    except UnidentifiedImageError:
        raise DataError("cannot be read as an image (its format is unknown)", path=path) from None
    except Exception as error:  # Pillow raises many exceptions for damaged files
        words = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"cannot be read as an image ({words.splitlines()[0]})", path=path) from None


def _open(file: BinaryIO) -> Image.Image:
    """Opens without Pillow's own limit, which applies to the process."""
    with _limit:
        Image.init()
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


# --- frames -----------------------------------------------------------------------------------------------------------


def count_frames(path: str | Path) -> int:
    """The number of images in a file: frames of DICOM, pages of TIFF.

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
    """The pages of a TIFF that are not thumbnails; the single image of any other file."""
    if not isinstance(image, TiffImageFile):
        return [0]
    pages = []
    for page in range(image.n_frames):
        image.seek(page)
        if not int(image.tag_v2.get(SUBFILE, 0)) & 1:
            pages.append(page)
    return pages or [0]


def seek(image: Image.Image, path: Path, frame: int | None, max_pixels: int) -> list[int]:
    """Seeks a frame; returns all pages."""
    pages = _pages(image)
    if frame is None and len(pages) > 1:
        raise DataError(f"contains {len(pages)} pages where one image is expected", path=path)
    if frame is not None and not 0 <= frame < len(pages):
        raise DataError(f"there is no frame {frame}, only 0 to {len(pages) - 1}", path=path)
    if image.format == "TIFF":
        image.seek(pages[frame or 0])
        check_pixels(path, *image.size, max_pixels)
    return pages


# --- orientation ------------------------------------------------------------------------------------------------------

TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # by EXIF's number, of (H, W, ...)
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.swapaxes(0, 1),
    6: lambda values: np.rot90(values, -1),
    7: lambda values: values[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
DAMAGED_EXIF = (SyntaxError, ValueError, TypeError, OSError, KeyError, IndexError, OverflowError)
AS_STORED = "its EXIF data cannot be read, so it is shown without rotation"


def upright(image: Image.Image, remarks: list[str]) -> Image.Image:
    """The image, rotated by its EXIF orientation."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except DAMAGED_EXIF:
        remarks.append(AS_STORED)
        return image


def upright_numbers(values: np.ndarray, image: Image.Image, remarks: list[str]) -> np.ndarray:
    """`upright` for the stored numbers of the image."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except DAMAGED_EXIF:
        remarks.append(AS_STORED)
        return values
    return TURNS[orientation](values) if orientation in TURNS else values


# --- pixels -----------------------------------------------------------------------------------------------------------


def stored_numbers(image: Image.Image, path: Path, page: int) -> np.ndarray | None:
    """The stored numbers of an image with more than 8 bits, (H, W) or (H, W, 3); None for one with 8 bits."""
    if image.mode in WIDE:
        return np.asarray(image)
    found = [tile[3] if isinstance(tile[3], str) else tile[3][0] for tile in getattr(image, "tile", ()) if tile[3]]
    packing = next((one for one in found if isinstance(one, str) and ";16" in one), None)
    if packing is None:
        return None
    if image.format == "PNG":
        return _png_colours(image, path, packing)
    return _tiff_colours(image, path, page, packing)


def _png_colours(image: Image.Image, path: Path, packing: str) -> np.ndarray:
    """The colours of a 16-bit PNG, of which Pillow keeps only the upper bytes; greys with transparency are (H, W)."""
    if packing == "LA;16B":  # four bytes per pixel, read as four 8-bit colours
        content = path.read_bytes()
        head = b"IHDR" + content[16:24] + bytes((8, 6)) + content[26:29]
        content = content[:12] + head + zlib.crc32(head).to_bytes(4, "big") + content[33:]
        with Image.open(io.BytesIO(content), formats=("PNG",)) as bytes_of:
            upper, lower = np.moveaxis(np.asarray(bytes_of)[..., :2].astype(np.uint16), -1, 0)
        return upper << 8 | lower
    low = _lower_bytes(path, 0, packing.replace("16B", "16L"))
    return np.asarray(image)[..., :3].astype(np.uint16) << 8 | low


def _tiff_colours(image: Image.Image, path: Path, page: int, packing: str) -> np.ndarray:
    """The colours of a 16-bit TIFF, of which Pillow keeps one byte each: the upper one in native byte order."""
    kind, _, order = packing.partition(";16")
    other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}.get(order)
    if kind not in ("RGB", "RGBA", "RGBX") or other is None:
        raise DataError(f"its 16-bit colours ({packing}) cannot be read: save it as RGB, or with 8 bits", path=path)
    low = _lower_bytes(path, page, f"{kind};16{other}")
    return np.asarray(image)[..., :3].astype(np.uint16) << 8 | low


def _lower_bytes(path: Path, page: int, swapped: str) -> np.ndarray:
    """The bytes of a 16-bit image that Pillow drops, read by swapping the declared byte order."""
    with opened(path, 2**32) as again:
        again.seek(page)
        assert isinstance(again, ImageFile)
        again.tile = [
            tile._replace(args=swapped if isinstance(tile.args, str) else (swapped, *(tile.args or ())[1:]))
            for tile in again.tile
        ]
        return np.asarray(again)[..., :3]


def _bits(image: Image.Image) -> int:
    """The number of bits of each number in the file."""
    bits = 32 if image.mode in ("I", "F") else 16
    return int(np.atleast_1d(image.tag_v2.get(BITS, bits))[0]) if isinstance(image, TiffImageFile) else bits


def _stretched(values: np.ndarray, image: Image.Image, path: Path, pages: list[int], remarks: list[str]) -> np.ndarray:
    """Numbers of more than 8 bits as uint8."""
    span = extent(values)
    if len(pages) > 1:
        stat = path.stat()
        span = _film_extent(path, (stat.st_mtime_ns, stat.st_size))
    scale = choose_scale(span, values.dtype, _bits(image))
    if scale.remark:
        remarks.append(scale.remark)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        remarks.append("contains NaN or infinite values, which are shown as black")
    inverted = isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO
    with np.errstate(all="ignore"):  # NaN becomes black
        return eight_bits(render(values, scale, inverted=inverted))


@lru_cache(maxsize=8)
def _film_extent(path: Path, _version: tuple[int, int]) -> tuple[float, float] | None:
    """The range of numbers over all pages of a TIFF."""
    with opened(path, 2**32) as image:
        extents = []
        for page in _pages(image):
            image.seek(page)
            values = stored_numbers(image, path, page)
            if values is not None:
                extents.append(extent(values))
        return joint(extents)


def load_image(path: Path, frame: int | None = None, max_pixels: int = MAX_PIXELS) -> Loaded:
    """`read_image` with the file's metadata.

    Raises:
        DataError: there is no such file, it cannot be read, or it contains several frames and none is selected.
        TooLargeError: a frame has too many pixels.
    """
    check_file(path, "an image file")
    if is_dicom(path):
        unit, tags = render_dicom(path, frame, max_pixels)
        pixels = eight_bits(unit)
        pixels = np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels
        return Loaded(pixels, *pixel_spacing(tags, frame or 0), tuple(tags.remarks))
    remarks: list[str] = []
    with opened(path, max_pixels) as image:
        pages = seek(image, path, frame, max_pixels)
        values = stored_numbers(image, path, pages[frame or 0])
        if values is None:
            image.load()
            pixels = np.asarray(upright(image, remarks).convert("RGB"))
        else:
            values = upright_numbers(values, image, remarks)
            pixels = _stretched(values, image, path, pages, remarks)
            pixels = np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels
    return Loaded(pixels, remarks=tuple(remarks))


def read_image(path: str | Path, frame: int | None = None, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image in RGB as viewers show it, with its orientation and brightness applied.

    Numbers of more than 8 bits are scaled by the bit depth that holds their maximum (see `mtlkit.data.pixels`), so that
    the same pixels give the same image in any file format.

    Args:
        path: PNG, JPEG, BMP, TIFF with any bit depth, or DICOM.
        frame: index of the DICOM frame or TIFF page, from 0; required if there are several.
        max_pixels: maximal number of pixels in a frame.

    Returns:
        (H, W, 3), uint8.

    Raises:
        DataError: there is no such file, it cannot be read, or it contains several frames and none is selected.
        TooLargeError: a frame has more pixels than `max_pixels`.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> from mtlkit.data import read_image
        >>> read_image(get_testdata_file("CT_small.dcm")).shape
        (128, 128, 3)
    """
    return load_image(Path(path), frame, max_pixels).pixels
