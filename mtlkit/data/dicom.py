"""DICOM: rendered pixels, and the tags for side and view of a mammogram.

Sources: DICOM PS3.3, C.8.11.7 (mammography image module); PS3.16, CID 4014 (views, by SNOMED CT code and by the older
SNOMED RT code).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtlkit.data.dicom_file import open_dicom
from mtlkit.data.dicom_pixels import render_dicom
from mtlkit.data.dicom_spacing import pixel_spacing
from mtlkit.data.pixels import MAX_PIXELS

__all__ = ["DicomTags", "read_dicom", "read_dicom_tags", "read_pixel_spacing"]

VIEW_CODES = {"399162004": "CC", "R-10242": "CC", "399368009": "MLO", "R-10226": "MLO"}


@dataclass(frozen=True)
class DicomTags:
    """The tags of a mammogram.

    Args:
        patient: PatientID.
        side: "L" or "R", from ImageLaterality or Laterality.
        view: "CC" or "MLO", from ViewPosition or ViewCodeSequence.

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
        """One of `VIEWS`, or None if a tag is missing."""
        return f"{self.side}-{self.view}" if self.side and self.view else None


def read_dicom_tags(path: str | Path) -> DicomTags:
    """Patient, side and view of a mammogram; None where the file has no value or another one.

    Raises:
        DataError: the file cannot be read.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> from mtlkit.data import read_dicom_tags
        >>> read_dicom_tags(get_testdata_file("CT_small.dcm"))
        DicomTags(patient='1CT1', side=None, view=None)
    """
    tags = open_dicom(Path(path), max_pixels=2**32)
    side = (tags.text("ImageLaterality") or tags.text("Laterality")).upper()
    view = tags.text("ViewPosition").upper()
    if view not in ("CC", "MLO"):
        codes = [tags.text("CodeValue", item) for item in tags.items("ViewCodeSequence")]
        view = next((VIEW_CODES[code] for code in codes if code in VIEW_CODES), None)
    return DicomTags(tags.text("PatientID") or None, side if side in ("L", "R") else None, view)


def read_pixel_spacing(path: str | Path, frame: int = 0) -> tuple[float, float] | None:
    """The distances between rows and between columns in mm; None if the file does not say.

    For an ultrasound image its regions take precedence over PixelSpacing. A calibrated PixelSpacing takes precedence
    over ImagerPixelSpacing, which applies to the plane of the detector and is divided by the magnification if that is
    known. The result is also None if tags contradict each other and none is more reliable.

    Args:
        path: the file.
        frame: index of the frame, if there are several.

    Raises:
        DataError: the file cannot be read.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> from mtlkit.data import read_pixel_spacing
        >>> read_pixel_spacing(get_testdata_file("CT_small.dcm"))
        (0.661468, 0.661468)
    """
    return pixel_spacing(open_dicom(Path(path), max_pixels=2**32), frame).value


def read_dicom(path: str | Path, frame: int | None = None, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The pixels as a viewer renders them.

    The modality LUT and the VOI LUT or window are applied, per frame if frames have their own; MONOCHROME1 is inverted
    unless PresentationLUTShape says otherwise; padding is black. Without a window, numbers of more than 8 bits are
    scaled by the bit depth that holds the maximum of all frames, as in any other file (see `mtlkit.data.pixels`).
    Colours are returned as RGB. Invalid tags, such as a window of width 0, are ignored.

    Args:
        path: the file.
        frame: index of the frame, if there are several.
        max_pixels: maximal number of pixels in a frame.

    Returns:
        (H, W), or (H, W, 3) for colours, float32 in [0, 1].

    Raises:
        DataError: the file cannot be read or decoded, or has several frames and none is selected.
        TooLargeError: its frames have more pixels than `max_pixels`.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> from mtlkit.data import read_dicom
        >>> pixels = read_dicom(get_testdata_file("CT_small.dcm"))
        >>> pixels.shape, float(pixels.min()), float(pixels.max())
        ((128, 128), 0.0, 1.0)
    """
    return render_dicom(Path(path), frame, max_pixels).unit
