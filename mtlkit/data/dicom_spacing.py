"""The size of the pixels of a DICOM file, for which several tags may give different values.

    ultrasound     the tissue regions, if they have one scale and lie inside the image; otherwise PixelSpacing
    projection     PixelSpacing counts where it was calibrated: where there is a PixelSpacingCalibrationType, or where
                   it is not the same as ImagerPixelSpacing; otherwise both are of the detector, and are divided by
                   the magnification, where that is known
    anything else  PixelSpacing

A remark reports a tag that contradicts the selected one. The size is unknown if no tag is more reliable than another:
with regions of several scales, and with a PixelSpacing that is as outdated as regions that extend beyond the image.

Source: DICOM PS3.3, 10.7.1.3 (pixel spacing and its calibration) and C.8.5.5 (ultrasound regions).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from mtlkit.data.dicom_file import Tags, is_dicom, open_dicom
from mtlkit.data.dicom_pixels import functional_group
from mtlkit.data.records import Exam, Record, and_more

LARGEST = 1e6  # mm; values outside are not pixel sizes
TISSUE, CENTIMETRES = 1, 3  # ultrasound region: two-dimensional kind, and units
SAME = 1e-3  # relative difference between two notations of one number
CLOSE = 0.02  # relative difference between two measurements of one size

Pair = tuple[float, float]


class Spacing(NamedTuple):
    """The pixel size of a file."""

    value: Pair | None  # mm between rows and between columns
    conflict: str = ""  # remark on a contradiction


def pixel_spacing(tags: Tags, frame: int = 0) -> Spacing:
    """The spacing of a frame, by the rules above."""
    group = functional_group(tags, "PixelMeasuresSequence", frame)
    pixel = _usable(tags.numbers("PixelSpacing", group))
    regions = [
        region
        for region in tags.items("SequenceOfUltrasoundRegions")
        if tags.number("RegionSpatialFormat", None, region) == TISSUE
    ]
    if regions:
        return _ultrasound(tags, regions, pixel)
    return _projection(tags, frame, pixel)


def _ultrasound(tags: Tags, regions: list[Any], pixel: Pair | None) -> Spacing:
    units = {_pair(tags, region, "PhysicalUnitsYDirection", "PhysicalUnitsXDirection") for region in regions}
    if units != {(CENTIMETRES, CENTIMETRES)}:
        return Spacing(pixel)
    deltas = [_pair(tags, region, "PhysicalDeltaY", "PhysicalDeltaX") for region in regions]
    scales = [_usable([10 * abs(delta) for delta in pair if delta is not None]) for pair in deltas]
    first = scales[0]
    if first is None or None in scales:
        return Spacing(pixel)
    if any(scale is not None and not _alike(scale, first, SAME) for scale in scales):
        told = " and ".join(dict.fromkeys(_mm(scale) for scale in scales if scale is not None))
        return Spacing(None, f"its ultrasound regions have different scales, {told}: its size in mm is not known")
    if any(_reaches_beyond(region, tags) for region in regions):  # the image was resized or cropped, and they were not
        if pixel is None or not _alike(pixel, first, CLOSE):
            return Spacing(pixel)
        text = f"its ultrasound regions extend beyond the image, and PixelSpacing, {_mm(pixel)}, agrees with them"
        return Spacing(None, f"{text}: its size in mm is not known")
    if pixel is not None and not _alike(pixel, first, CLOSE):
        text = f"PixelSpacing, {_mm(pixel)}, contradicts its ultrasound regions, {_mm(first)}"
        return Spacing(first, f"{text}, which count")
    return Spacing(first)


def _projection(tags: Tags, frame: int, pixel: Pair | None) -> Spacing:
    group = functional_group(tags, "FramePixelDataPropertiesSequence", frame)
    imager = _usable(tags.numbers("ImagerPixelSpacing", group))
    if imager is None:
        return Spacing(pixel)
    magnification = tags.number("EstimatedRadiographicMagnificationFactor")
    magnification = magnification if magnification is not None and magnification > 0 else None
    rows, columns = (one / (magnification or 1) for one in imager)
    calibration = tags.text("PixelSpacingCalibrationType").upper()
    if pixel is None or (not calibration and _alike(pixel, imager, SAME)):
        return Spacing(_usable([rows, columns]))
    told = f"PixelSpacing, {_mm(pixel)}, which is used, contradicts"
    if magnification is not None and calibration != "FIDUCIAL" and not _alike(pixel, (rows, columns), CLOSE):
        return Spacing(pixel, f"{told} ImagerPixelSpacing, {_mm(imager)}, by its magnification of {magnification:g}")
    if not _alike((pixel[0] * imager[1], 1), (pixel[1] * imager[0], 1), CLOSE):
        return Spacing(pixel, f"{told} ImagerPixelSpacing, {_mm(imager)}, whose pixels have another aspect ratio")
    if pixel[0] > imager[0] * (1 + CLOSE):
        return Spacing(
            pixel, f"{told} ImagerPixelSpacing, {_mm(imager)}: an object cannot be larger than its projection"
        )
    return Spacing(pixel)


def _usable(numbers: list[float]) -> Pair | None:
    if len(numbers) != 2 or min(numbers) <= 0 or max(numbers) >= LARGEST:
        return None
    return numbers[0], numbers[1]


def _alike(one: Pair, other: Pair, tolerance: float) -> bool:
    return all(abs(a - b) <= tolerance * max(a, b) for a, b in zip(one, other, strict=True))


def _mm(pair: Pair) -> str:
    return f"{pair[0]:.4g} x {pair[1]:.4g} mm"


def _pair(tags: Tags, item: Any, rows: str, columns: str) -> tuple[float | None, float | None]:
    return tags.number(rows, None, item), tags.number(columns, None, item)


def _reaches_beyond(region: Any, tags: Tags) -> bool:
    """Whether an ultrasound region extends beyond the image."""
    rows, columns = tags.shape
    bottom, right = _pair(tags, region, "RegionLocationMaxY1", "RegionLocationMaxX1")
    return (right or 0) >= columns + 1 or (bottom or 0) >= rows + 1  # some files count the last pixel as excluded


def spacing_conflicts(records: Iterable[Record] | Iterable[Exam]) -> str:
    """A sentence about images with contradicting tags on the pixel size; "" if there are none.

    Only the tags of DICOM images are read.

    Raises:
        DataError: a DICOM file cannot be read.
    """
    found: list[tuple[Path, str]] = []
    for record in records:
        if isinstance(record, Record) and is_dicom(record.image):
            tags = open_dicom(record.image, max_pixels=2**32)
            if conflict := pixel_spacing(tags, record.frame or 0).conflict:
                found.append((record.image, conflict))
    if not found:
        return ""
    path, conflict = found[0]
    return f"{path}: {conflict}{and_more(found)}"
