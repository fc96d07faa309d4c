"""Pixel size: which tag wins if several give it, and the warning if they contradict each other."""

import numpy as np
import pydicom
import pytest
from PIL import Image

from mtlkit.data import Record, check_dataset
from mtlkit.data.dicom_spacing import spacing_conflicts
from mtlkit.data.images import load_image

PIXELS = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
DETECTOR = {"ImagerPixelSpacing": [0.1, 0.1]}
MAGNIFIED = DETECTOR | {"EstimatedRadiographicMagnificationFactor": 1.25}


def region(delta: float, right: int = 63) -> pydicom.Dataset:
    """A region of tissue, in cm per pixel."""
    item = pydicom.Dataset()
    item.RegionSpatialFormat, item.PhysicalUnitsXDirection, item.PhysicalUnitsYDirection = 1, 3, 3
    item.PhysicalDeltaX, item.PhysicalDeltaY = delta, delta
    item.RegionLocationMinX0, item.RegionLocationMinY0 = 0, 0
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = right, 63
    return item


def regions(*items: pydicom.Dataset) -> dict:
    return {"SequenceOfUltrasoundRegions": list(items)}


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"PixelSpacing": [0.1, 0.1]} | DETECTOR, 0.1),
        ({"PixelSpacing": [0.1, 0.1]} | MAGNIFIED, 0.08),  # equals the spacing at the detector: not calibrated
        ({"PixelSpacing": [0.08, 0.08]} | DETECTOR, 0.08),
        ({"PixelSpacing": [0.08, 0.08]} | MAGNIFIED, 0.08),
        ({"PixelSpacing": [0.08, 0.08], "PixelSpacingCalibrationType": "GEOMETRY"} | MAGNIFIED, 0.08),
        ({"PixelSpacing": [0.07, 0.07], "PixelSpacingCalibrationType": "FIDUCIAL"} | MAGNIFIED, 0.07),
        ({"PixelSpacing": [0.1, 0.1], "PixelSpacingCalibrationType": "FIDUCIAL"} | DETECTOR, 0.1),
        ({"PixelSpacing": [0.2, 0.2]} | regions(region(0.02)), 0.2),
        ({"PixelSpacing": [0.3, 0.3]} | regions(region(0.02, right=639)), 0.3),
        ({"PixelSpacing": [0.3, 0.3]} | regions(region(0)), 0.3),
        (regions(region(0.02), region(0.020001)), 0.2),
    ],
)
def test_what_counts(tmp_path, write_dicom, tags, expected):
    found = load_image(write_dicom(tmp_path / "a.dcm", PIXELS, **tags))
    assert found.spacing == pytest.approx((expected, expected))
    assert found.conflict == ""


@pytest.mark.parametrize(
    ("tags", "expected", "words"),
    [
        (
            {"PixelSpacing": [0.1, 0.1], "PixelSpacingCalibrationType": "GEOMETRY"} | MAGNIFIED,
            0.1,
            "PixelSpacing, 0.1 x 0.1 mm, which is used, contradicts ImagerPixelSpacing, 0.1 x 0.1 mm, by its "
            "magnification of 1.25",
        ),
        ({"PixelSpacing": [0.05, 0.05]} | MAGNIFIED, 0.05, "by its magnification of 1.25"),
        ({"PixelSpacing": [0.2, 0.2]} | DETECTOR, 0.2, "an object cannot be larger than its projection"),
        ({"PixelSpacing": [0.08, 0.04]} | DETECTOR, (0.08, 0.04), "whose pixels have another aspect ratio"),
        (
            {"PixelSpacing": [0.5, 0.5]} | regions(region(0.02)),
            0.2,
            "PixelSpacing, 0.5 x 0.5 mm, contradicts its ultrasound regions, 0.2 x 0.2 mm, which count",
        ),
        (
            {"PixelSpacing": [0.2, 0.2]} | regions(region(0.02), region(0.03)),
            None,
            "its ultrasound regions have different scales, 0.2 x 0.2 mm and 0.3 x 0.3 mm: its size in mm is not known",
        ),
        (
            {"PixelSpacing": [0.2, 0.2]} | regions(region(0.02, right=639)),
            None,
            "its ultrasound regions extend beyond the image, and PixelSpacing, 0.2 x 0.2 mm, agrees with them",
        ),
    ],
)
def test_what_contradicts_itself(tmp_path, write_dicom, tags, expected, words):
    path = write_dicom(tmp_path / "a.dcm", PIXELS, **tags)
    found = load_image(path)
    assert words in found.conflict
    if expected is None:
        assert found.spacing is None
    else:
        assert found.spacing == pytest.approx(expected if isinstance(expected, tuple) else (expected, expected))
    records = [Record(name, path, 0, (), name) for name in ("a", "b")]
    assert spacing_conflicts(records) == f"{path}: {found.conflict} (and 1 more)"


def test_pictures_and_plain_files_contradict_nothing(tmp_path, write_dicom):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    paths = tmp_path / "a.png", write_dicom(tmp_path / "a.dcm", PIXELS, PixelSpacing=[0.1, 0.1])
    assert spacing_conflicts([Record(path.name, path, 0, (), path.name) for path in paths]) == ""


def test_frames_have_spacings_of_their_own(tmp_path, write_dicom):
    groups = []
    for spacing in (0.1, 0.3):
        group, measures = pydicom.Dataset(), pydicom.Dataset()
        measures.PixelSpacing = [spacing, spacing]
        group.PixelMeasuresSequence = [measures]
        groups.append(group)
    tags = {"Rows": 64, "NumberOfFrames": 2, "PerFrameFunctionalGroupsSequence": groups}
    path = write_dicom(tmp_path / "a.dcm", np.concatenate([PIXELS, PIXELS]), **tags)
    assert [load_image(path, frame).spacing for frame in (0, 1)] == [(0.1, 0.1), (0.3, 0.3)]


def test_a_check_tells(tmp_path, write_dicom):
    for name in ("benign", "malignant"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in (1, 2):
            pixels = np.roll(PIXELS, 999 * number + len(name))
            tags = {"PixelSpacing": [0.5, 0.5]} | regions(region(0.02)) if number == 2 else {}
            write_dicom(tmp_path / "images" / name / f"{number}.dcm", pixels, **tags)
    report = check_dataset(tmp_path, "folder")
    found = [finding for finding in report.findings if finding.kind == "contradicting spacing"]
    assert [(finding.level, finding.path.name) for finding in found] == [("warning", "2.dcm")] * 2
    assert report.ok
