"""Decodes and renders the pixels of a DICOM file by pydicom, ignoring invalid tags.

Sources: DICOM PS3.3, C.7.6.3.1.2 (photometric interpretation), C.8.11.3 (presentation LUT shape), C.7.5.1.1.2
(padding), C.11.1 (modality LUT), C.11.2 (VOI LUT and window), C.7.6.16.2 (functional groups of frames).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtlkit.data.dicom_file import Tags, first_line, open_dicom
from mtlkit.data.pixels import MAX_PIXELS, Scale, check_pixels, choose_scale, extent, joint, render
from mtlkit.errors import DataError

DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
DEPTHS = (8, 10, 11, 12, 13, 14, 15, 16)  # dtypes of LUT entries
# packages with a decoder, by the start of the transfer syntax's name
DECODERS = {
    "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "High-Throughput JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "JPEG": "pylibjpeg pylibjpeg-libjpeg",
}


class Window(NamedTuple):
    """A valid window."""

    center: float
    width: float
    function: str


class Rendered(NamedTuple):
    """A rendered frame."""

    unit: np.ndarray  # (H, W) or (H, W, 3), float32 in [0, 1]
    tags: Tags


def render_dicom(path: Path, frame: int | None = None, max_pixels: int = MAX_PIXELS) -> Rendered:
    """Decodes and renders a frame.

    Raises:
        DataError: the file cannot be read or decoded, or has several frames and none is selected.
        TooLargeError: its frames have too many pixels.
    """
    tags = open_dicom(path, pixels=True, max_pixels=max_pixels)
    index = choose_frame(tags, frame)
    stored = decode(tags, index, max_pixels)
    with rendering(path):
        colours = stored.ndim == 3 or _is_palette(tags)
        return Rendered(_colours(stored, tags) if colours else _grey(stored, tags, index), tags)


def choose_frame(tags: Tags, frame: int | None) -> int:
    """The index of the selected frame.

    Raises:
        DataError: there is no image, no such frame, or there are several frames and none is selected.
    """
    path, frames = tags.path, tags.frames
    if not any(name in tags.dataset for name in DATA) or 0 in tags.shape:
        raise DataError("this DICOM file contains no image", path=path)
    if frame is None and frames > 1:
        raise DataError(f"contains {frames} frames where one image is expected", path=path)
    if frame is not None and not 0 <= frame < frames:
        raise DataError(f"there is no frame {frame}, only 0 to {frames - 1}", path=path)
    return frame or 0


def decode(tags: Tags, index: int, max_pixels: int) -> np.ndarray:
    """The stored numbers of a frame, (H, W), or (H, W, C) with colours as RGB.

    Raises:
        DataError: there is no decoder, or the data are damaged.
        TooLargeError: the compressed frame has too many pixels, whatever the tags say.
    """
    from pydicom.pixels import get_decoder, pixel_array

    with rendering(tags.path):
        if tags.compressed:
            if not get_decoder(tags.dataset.file_meta.TransferSyntaxUID).is_available:
                packages = next((p for name, p in DECODERS.items() if tags.syntax.startswith(name)), "python-gdcm")
                text = f"its pixels cannot be decoded ({tags.syntax} needs a decoder: pip install {packages})"
                raise DataError(text, path=tags.path)
            _check_compressed(tags, index, max_pixels)
        return pixel_array(tags.dataset, index=index)  # decodes no other frame


@contextmanager
def rendering(path: Path) -> Iterator[None]:
    """Turns any exception inside, from truncated data or contradicting tags, into a DataError."""
    try:
        with np.errstate(all="ignore"):  # NaN becomes black
            yield
    except DataError:
        raise
    except MemoryError:  # not the file's fault, so skip_bad must not drop it
        raise MemoryError(f"{path}: there is not enough memory to decode its pixels") from None
    except Exception as error:
        raise DataError(f"its pixels cannot be decoded ({first_line(error)})", path=path) from None


def _check_compressed(tags: Tags, index: int, max_pixels: int) -> None:
    """Raises if the header of a compressed frame announces too many pixels."""
    from PIL import Image, UnidentifiedImageError
    from pydicom.encaps import get_frame

    data = get_frame(tags.dataset.PixelData, index, number_of_frames=tags.frames)
    try:
        with Image.open(BytesIO(data), formats=("JPEG", "JPEG2000")) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        width = height = 65535
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return  # RLE, JPEG-LS and damaged frames: their decoders use Rows and Columns
    check_pixels(tags.path, width, height, max_pixels)


# --- colours ----------------------------------------------------------------------------------------------------------


def _is_palette(tags: Tags) -> bool:
    return tags.text("PhotometricInterpretation") == "PALETTE COLOR"


def _colours(stored: np.ndarray, tags: Tags) -> np.ndarray:
    """Colours of any depth, and palette indices, whose entries may use only some of their bits."""
    from pydicom.pixels import apply_color_lut

    if _is_palette(tags):
        descriptor = _descriptor(tags, "RedPaletteColorLookupTableDescriptor")
        if descriptor is None:
            text = "RedPaletteColorLookupTableDescriptor: expected count, first value and depth of its palette"
            raise DataError(text, path=tags.path)
        count, first, _ = descriptor
        every = np.arange(first, first + count)
        palette = apply_color_lut(every, tags.dataset)[..., :3]
        scale = choose_scale(extent(palette), palette.dtype, palette.dtype.itemsize * 8)
        return render(palette, scale)[(stored.astype(np.int64) - first).clip(0, len(every) - 1)]
    if stored.shape[2] < 3:
        raise DataError(f"its pixels cannot be decoded ({stored.shape[2]} samples per pixel)", path=tags.path)
    return render(stored[..., :3], _stored_scale(stored, tags))


# --- grey -------------------------------------------------------------------------------------------------------------


def _grey(stored: np.ndarray, tags: Tags, index: int) -> np.ndarray:
    """Grey values after modality LUT and VOI LUT or window, without padding."""
    inverted = _is_inverted(tags)
    hidden = _padding(stored, tags)
    values = _modality(stored, tags, index)
    span = extent(values, hidden)
    if (lut := _lut(tags, "VOILUTSequence", index)) is not None:
        entries = _apply_lut(values, lut, tags)
        scale = _told(choose_scale(_film(stored, tags).entries, entries.dtype, _depth(lut, tags)), tags)
        return render(entries, scale, hidden, inverted=inverted)
    for window in _windows(tags, index):
        unit = _apply_window(values, window)
        shown = extent(unit, hidden)
        if (
            shown is None
            or shown[0] < shown[1]
            or span is None
            or span[0] == span[1]
            or _shows_other_frames(window, stored, tags)
        ):
            return render(unit, Scale(0, 1), hidden, inverted=inverted)
        tags.remarks.append(
            f"its window with center {window.center:g} and width {window.width:g} excludes all its values, "
            f"{span[0]:g} to {span[1]:g}, and is ignored"
        )
    film = _film(stored, tags)
    if film.linear:  # values rendered like the stored numbers, or inverted if they decrease with these
        falling = _rescale(tags, index)[0] < 0
        return render(stored, _stored_scale(stored, tags), hidden, inverted=inverted != falling)
    lut = _lut(tags, "ModalityLUTSequence", index)
    bits = values.dtype.itemsize * 8 if lut is None else _depth(lut, tags)
    return render(values, _told(choose_scale(film.values, values.dtype, bits), tags), hidden, inverted=inverted)


def _is_inverted(tags: Tags) -> bool:
    """Whether low values are white: by PresentationLUTShape, otherwise by MONOCHROME1; the two should agree."""
    photometric, shape = tags.text("PhotometricInterpretation"), tags.text("PresentationLUTShape").upper()
    inverted = photometric == "MONOCHROME1"
    if shape not in ("IDENTITY", "INVERSE") or (shape == "INVERSE") == inverted:
        return inverted
    tags.remarks.append(f"PresentationLUTShape {shape} contradicts {photometric} and takes precedence")
    return not inverted


def _stored_scale(stored: np.ndarray, tags: Tags) -> Scale:
    """Black and white levels of stored numbers: one scale for all frames, as in any other kind of file."""
    bits = tags.count("BitsStored", stored.dtype.itemsize * 8, 64)
    span = (0.0, 0.0) if bits <= 8 and stored.dtype.kind in "ub" else _film(stored, tags).stored
    if stored.dtype.kind == "i":  # the brightness of a film must not depend on whether it has negative numbers
        low, high = span or (0.0, 0.0)
        return _told(Scale(low, high, f"signed numbers, stretched from {low:g} to {high:g}"), tags)
    return _told(choose_scale(span, stored.dtype, bits), tags)


def _told(scale: Scale, tags: Tags) -> Scale:
    if scale.remark and scale.remark not in tags.remarks:
        tags.remarks.append(scale.remark)
    return scale


class _Film(NamedTuple):
    """The ranges over all frames, without padding."""

    stored: tuple[float, float] | None  # minimum and maximum of the stored numbers
    values: tuple[float, float] | None  # of the values after the modality LUT
    entries: tuple[float, float] | None  # of the entries of the VOI LUTs
    linear: bool  # whether all frames have the same slope and intercept


def _film(stored: np.ndarray, tags: Tags) -> _Film:
    """The ranges of the film that contains a frame."""
    if tags.frames == 1:
        return _measured([stored], tags)
    stat = tags.path.stat()
    return _cached_film(tags.path, (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=8)
def _cached_film(path: Path, _version: tuple[int, int]) -> _Film:
    from pydicom.pixels import iter_pixels

    tags = open_dicom(path, pixels=True, max_pixels=2**32)  # checked when it was first opened
    return _measured(iter_pixels(tags.dataset), tags)


def _measured(frames: Iterable[np.ndarray], tags: Tags) -> _Film:
    of_stored, of_values, of_entries, rescales = [], [], [], set()
    for index, stored in enumerate(frames):
        if stored.ndim == 3:
            of_stored.append(extent(stored[..., :3]))
            continue
        hidden = _padding(stored, tags)
        of_stored.append(extent(stored, hidden))
        of_values.append(extent(_modality(stored, tags, index), hidden))
        rescales.add(None if _lut(tags, "ModalityLUTSequence", index) is not None else _rescale(tags, index))
        if (lut := _lut(tags, "VOILUTSequence", index)) is not None:
            count, first, _ = (int(n) for n in tags.numbers("LUTDescriptor", lut))
            of_entries.append(extent(_apply_lut(np.arange(first, first + (count or 2**16)), lut, tags)))
    linear = len(rescales) == 1 and None not in rescales
    return _Film(joint(of_stored), joint(of_values), joint(of_entries), linear)


def _depth(lut: Any, tags: Tags) -> int:
    """The number of bits that a table declares for its entries."""
    return int(tags.numbers("LUTDescriptor", lut)[2])


def _padding(stored: np.ndarray, tags: Tags) -> np.ndarray | None:
    """Mask of the padding pixels around the image; None if there are none."""
    first = tags.number("PixelPaddingValue")
    if first is None:
        return None
    last = tags.number("PixelPaddingRangeLimit", first)
    low, high = min(first, last), max(first, last)
    kind = stored.dtype
    if kind.kind == "i" and low > np.iinfo(kind).max:  # written as unsigned
        low, high = low - 2.0 ** (8 * kind.itemsize), high - 2.0 ** (8 * kind.itemsize)
    if kind.kind == "u" and high < 0:  # written as signed
        low, high = low + 2.0 ** (8 * kind.itemsize), high + 2.0 ** (8 * kind.itemsize)
    hidden = (stored >= low) & (stored <= high)
    return hidden if hidden.any() else None


def _rescale(tags: Tags, index: int) -> tuple[float, float]:
    """Slope and intercept."""
    group = functional_group(tags, "PixelValueTransformationSequence", index)
    slope, intercept = tags.number("RescaleSlope", 1.0, group), tags.number("RescaleIntercept", 0.0, group)
    if slope == 0:
        tags.drop("RescaleSlope", slope)
        slope = 1.0
    return slope, intercept


def _modality(stored: np.ndarray, tags: Tags, index: int) -> np.ndarray:
    """Values of stored numbers: by the modality LUT, otherwise by slope and intercept."""
    if (lut := _lut(tags, "ModalityLUTSequence", index)) is not None:
        return _apply_lut(stored, lut, tags)
    slope, intercept = _rescale(tags, index)
    return stored if (slope, intercept) == (1, 0) else stored.astype(np.float64) * slope + intercept


def _lut(tags: Tags, name: str, index: int) -> Any:
    """The first valid item of a sequence of LUTs."""
    group = functional_group(tags, "FrameVOILUTSequence", index) if name.startswith("VOI") else None
    for item in tags.items(name, group):
        descriptor, data = _descriptor(tags, "LUTDescriptor", item), tags.get("LUTData", item)
        if descriptor is not None and data is not None:
            have = len(data) // 2 if isinstance(data, bytes) else len(np.atleast_1d(data))
            if have >= descriptor[0]:
                return item
        tags.drop(name, "without a table")
    return None


def _descriptor(tags: Tags, name: str, item: Any = None) -> tuple[int, int, int] | None:
    """The number of entries of a table, the input of its first entry, and their depth; None if it does not say."""
    numbers = tags.numbers(name, item)
    if len(numbers) != 3 or any(number != int(number) for number in numbers):
        return None
    count, first, depth = map(int, numbers)
    if not 0 <= count < 2**16 or abs(first) >= 2**16 or depth not in DEPTHS:
        return None
    return count or 2**16, first, depth


def _apply_lut(values: np.ndarray, item: Any, tags: Tags) -> np.ndarray:
    """Maps values by a table; values outside its range get its first or last entry."""
    from pydicom import Dataset
    from pydicom.pixels import apply_voi

    descriptor = _descriptor(tags, "LUTDescriptor", item)
    assert descriptor is not None  # checked when the table was chosen
    count, first, _ = descriptor
    dataset = Dataset()
    dataset.VOILUTSequence = [item]
    dataset.file_meta = tags.dataset.file_meta
    return apply_voi(np.rint(values).clip(first, first + count - 1).astype(np.int64), dataset)


def _windows(tags: Tags, index: int) -> list[Window]:
    """The valid windows: width at least 1, or above 0 if the function is not LINEAR."""
    group = functional_group(tags, "FrameVOILUTSequence", index)
    centers, widths = tags.numbers("WindowCenter", group), tags.numbers("WindowWidth", group)
    function = tags.text("VOILUTFunction", group).upper() or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        tags.drop("VOILUTFunction", function)
        function = "LINEAR"
    if bool(centers) != bool(widths):
        tags.drop("WindowCenter" if centers else "WindowWidth", (centers or widths)[0])
    found = []
    for center, width in zip(centers, widths, strict=False):
        if width <= 0:
            tags.drop("WindowWidth", width)
            continue
        exact = function == "LINEAR" and width < 1
        if exact:
            remark = f"WindowWidth {width:g} is below 1 and is interpreted as LINEAR_EXACT"
            if remark not in tags.remarks:
                tags.remarks.append(remark)
        found.append(Window(center, width, "LINEAR_EXACT" if exact else function))
    return found


def _apply_window(values: np.ndarray, window: Window) -> np.ndarray:
    """Maps values by a window to [0, 1]."""
    from pydicom import Dataset
    from pydicom.pixels import apply_windowing

    dataset = Dataset()
    dataset.PhotometricInterpretation, dataset.BitsStored, dataset.PixelRepresentation = "MONOCHROME2", 1, 0
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = window
    return apply_windowing(values, dataset)  # one bit: from 0 to 1


def _shows_other_frames(window: Window, stored: np.ndarray, tags: Tags) -> bool:
    """Whether a window that excludes all values of a frame shows values of other frames of the film."""
    if tags.frames == 1:
        return False
    low, high = _film(stored, tags).values or (0.0, 0.0)
    ends = _apply_window(np.array([low, high]), window)
    return bool(ends[0] < ends[1])


def functional_group(tags: Tags, name: str, index: int) -> Any:
    """The item of a functional group for a frame, its own or a shared one; None if the file's own tags apply."""
    frames = tags.items("PerFrameFunctionalGroupsSequence")
    shared = tags.items("SharedFunctionalGroupsSequence")
    for group in (*frames[index : index + 1], *shared[:1]):
        if found := tags.items(name, group):
            return found[0]
    return None
