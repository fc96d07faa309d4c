"""DICOM: pixels as they are meant to be seen, and the tags that say which view of which breast it is.

Sources: DICOM PS3.3, C.7.6.3.1.2 (photometric interpretation), C.11.2 (VOI LUT), C.8.11.7 (mammography image module),
10.7.1.3 (pixel spacing) and C.8.5.5 (ultrasound regions);
PS3.16, CID 4014 (views, by SNOMED CT code and by the older SNOMED RT code).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtlkit.errors import DataError

__all__ = ["DicomTags", "count_frames", "read_dicom", "read_dicom_tags", "read_pixel_spacing"]

TISSUE, CENTIMETRES = 1, 3  # of an ultrasound region: its kind, two-dimensional, and its units
VIEW_CODES = {"399162004": "CC", "R-10242": "CC", "399368009": "MLO", "R-10226": "MLO"}


def is_dicom(path: Path) -> bool:
    """Whether a file is named as DICOM or begins as such."""
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _read(path: Path, *, pixels: bool) -> Any:
    import pydicom

    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except Exception as error:  # pydicom raises many kinds on a damaged file
        raise DataError(f"{path}: cannot be read as DICOM ({_first_line(error)})") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


@dataclass(frozen=True)
class DicomTags:
    """What a mammogram says of itself.

    Args:
        patient: PatientID.
        side: "L" or "R", of ImageLaterality or Laterality.
        view: "CC" or "MLO", of ViewPosition or ViewCodeSequence.

    Example:
        >>> from mtlkit.data import DicomTags
        >>> DicomTags("D1-0001", "L", "CC").name
        'L-CC'
    """

    patient: str | None
    side: str | None
    view: str | None

    @property
    def name(self) -> str | None:
        """One of `VIEWS`, or None where a tag is missing."""
        return f"{self.side}-{self.view}" if self.side and self.view else None


def read_dicom_tags(path: str | Path) -> DicomTags:
    """Patient, side and view of a mammogram; None where the file does not say, or says something else.

    Raises:
        DataError: the file cannot be read.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> from mtlkit.data import read_dicom_tags
        >>> read_dicom_tags(get_testdata_file("CT_small.dcm"))
        DicomTags(patient='1CT1', side=None, view=None)
    """
    tags = _read(Path(path), pixels=False)

    def text(name: str) -> str:
        return str(tags.get(name, "") or "").strip().upper()

    side = text("ImageLaterality") or text("Laterality")
    view = text("ViewPosition")
    if view not in ("CC", "MLO"):
        codes = tags.get("ViewCodeSequence") or []
        view = next((VIEW_CODES[c] for item in codes if (c := str(item.get("CodeValue", ""))) in VIEW_CODES), None)
    patient = str(tags.get("PatientID", "") or "").strip()
    return DicomTags(patient or None, side if side in ("L", "R") else None, view)


def _frames(tags: Any) -> int:
    return int(tags.get("NumberOfFrames", 1) or 1)


def count_frames(path: str | Path) -> int:
    """How many frames a DICOM file holds.

    Raises:
        DataError: the file cannot be read.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> from mtlkit.data import count_frames
        >>> count_frames(get_testdata_file("examples_ybr_color.dcm"))
        30
    """
    return _frames(_read(Path(path), pixels=False))


def read_pixel_spacing(path: str | Path) -> tuple[float, float] | None:
    """How far rows and columns lie apart, in mm; None where the file does not say.

    Of PixelSpacing; else of ImagerPixelSpacing, in the plane of the detector, divided by the magnification where that
    is known; else of the regions of an ultrasound image, if all that show tissue have the same scale.

    Raises:
        DataError: the file cannot be read.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> from mtlkit.data import read_pixel_spacing
        >>> read_pixel_spacing(get_testdata_file("CT_small.dcm"))
        (0.661468, 0.661468)
    """
    tags = _read(Path(path), pixels=False)
    magnification = 1.0
    spacing = tags.get("PixelSpacing")
    if not spacing:
        spacing = tags.get("ImagerPixelSpacing")
        magnification = float(tags.get("EstimatedRadiographicMagnificationFactor", 1) or 1)
    if not spacing:
        regions = [r for r in tags.get("SequenceOfUltrasoundRegions") or [] if r.get("RegionSpatialFormat") == TISSUE]
        if any(_reaches_beyond(region, tags) for region in regions):
            return None  # the image was resized or cropped, and its regions were not
        units = {(r.get("PhysicalUnitsXDirection"), r.get("PhysicalUnitsYDirection")) for r in regions}
        scales = {(r.get("PhysicalDeltaY"), r.get("PhysicalDeltaX")) for r in regions}
        if units == {(CENTIMETRES, CENTIMETRES)} and len(scales) == 1:
            spacing = [10 * abs(delta) for delta in scales.pop() if delta is not None]
    try:
        rows, columns = (float(value) / magnification for value in spacing or ())
    except (TypeError, ValueError):
        return None
    return (rows, columns) if min(rows, columns) > 0 else None


def _reaches_beyond(region: Any, tags: Any) -> bool:
    """Whether an ultrasound region lies partly outside of the image."""
    right, bottom = region.get("RegionLocationMaxX1", 0), region.get("RegionLocationMaxY1", 0)
    return right >= tags.get("Columns", 0) + 1 or bottom >= tags.get("Rows", 0) + 1  # some count to the end


def read_dicom(path: str | Path, frame: int | None = None) -> np.ndarray:
    """The pixels as they are meant to be seen.

    The modality LUT and the VOI LUT or window are applied, MONOCHROME1 is inverted, and the values are stretched to
    [0, 1]. Colours come as RGB.

    Args:
        path: the file.
        frame: which frame, where there are several.

    Returns:
        (H, W), or (H, W, 3) for colours, float32 in [0, 1].

    Raises:
        DataError: the file cannot be read or decoded, or has several frames and none is named.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> from mtlkit.data import read_dicom
        >>> pixels = read_dicom(get_testdata_file("CT_small.dcm"))
        >>> pixels.shape, float(pixels.min()), float(pixels.max())
        ((128, 128), 0.0, 1.0)
    """
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array

    path = Path(path)
    dataset = _read(path, pixels=True)
    if "PixelData" not in dataset:
        raise DataError(f"{path}: this DICOM file holds no image")
    frames = _frames(dataset)
    if frame is None and frames > 1:
        raise DataError(f"{path}: holds {frames} frames where one image is expected")
    if frame is not None and not 0 <= frame < frames:
        raise DataError(f"{path}: there is no frame {frame}, only 0 to {frames - 1}")
    try:
        values = pixel_array(dataset, index=frame or 0)  # decodes no other frame
        top = 2 ** int(dataset.get("BitsStored", 8)) - 1
        if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
            values = apply_color_lut(values, dataset)[..., :3]
            top = np.iinfo(values.dtype).max
        elif dataset.get("SamplesPerPixel", 1) == 1:
            values = apply_voi_lut(apply_modality_lut(values, dataset), dataset)
    except Exception as error:  # missing decoders, truncated data, contradicting tags
        hint = "; pip install python-gdcm, or pylibjpeg, adds decoders" if "decode" in str(error).lower() else ""
        raise DataError(f"{path}: its pixels cannot be decoded ({_first_line(error)}){hint}") from None
    values = values.astype(np.float32)
    if values.ndim == 3:
        return values / top
    low, high = float(values.min()), float(values.max())
    values = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return 1 - values if dataset.get("PhotometricInterpretation") == "MONOCHROME1" else values
