"""DICOM: pixels with modality LUT, VOI LUT and window, MONOCHROME1 inverted; present and missing tags."""

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from mtlkit.data import DataError, count_frames, read_dicom, read_dicom_tags, read_image, read_pixel_spacing

RAMP = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)


def test_plain_pixels_are_stretched(tmp_path, write_dicom):
    pixels = read_dicom(write_dicom(tmp_path / "a.dcm", RAMP))
    np.testing.assert_allclose(pixels, RAMP / 4095, rtol=1e-6)
    assert pixels.dtype == np.float32


def test_window(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=2048.5, WindowWidth=2049)
    expected = np.clip((RAMP.astype(float) - 1024) / 2048, 0, 1)
    np.testing.assert_allclose(read_dicom(path), expected, atol=1e-3)


def test_monochrome1_is_inverted(tmp_path, write_dicom):
    plain = read_dicom(write_dicom(tmp_path / "a.dcm", RAMP))
    inverted = read_dicom(write_dicom(tmp_path / "b.dcm", RAMP, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-6)


def test_voi_lut(tmp_path, write_dicom):
    item = pydicom.Dataset()
    item.LUTDescriptor = [4096, 0, 16]
    item.LUTData = (np.arange(4096) ** 2 // 257).astype(np.uint16).tobytes()
    item["LUTData"].VR = "OW"
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    file = pydicom.dcmread(path)
    file.VOILUTSequence = [item]
    file.save_as(path)
    np.testing.assert_allclose(read_dicom(path), (RAMP.astype(float) ** 2 // 257) / 65535, atol=1e-3)


def test_modality_lut(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=-2, RescaleIntercept=10)
    np.testing.assert_allclose(read_dicom(path), 1 - RAMP / 4095, atol=1e-6)


def test_a_constant_image_is_as_bright_as_in_other_files(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", np.full((8, 8), 700, np.uint16))
    np.testing.assert_allclose(read_dicom(path), 700 / 1023, rtol=1e-6)
    assert not read_dicom(write_dicom(tmp_path / "b.dcm", np.zeros((8, 8), np.uint16))).any()


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"view": "CC", "ImageLaterality": "L"}, "L-CC"),
        ({"view": "MLO", "Laterality": "R"}, "R-MLO"),
        ({"ViewPosition": "MLO", "ImageLaterality": "L"}, "L-MLO"),
        ({"view": "CC"}, None),
        ({"ImageLaterality": "L"}, None),
        ({"view": "CC", "ImageLaterality": "B"}, None),
        ({"ViewPosition": "XCCL", "ImageLaterality": "L"}, None),
    ],
)
def test_tags(tmp_path, write_dicom, tags, expected):
    found = read_dicom_tags(write_dicom(tmp_path / "a.dcm", patient="D1-0001", **tags))
    assert (found.patient, found.name) == ("D1-0001", expected)


def bundled(name: str) -> str:
    """A file that is part of pydicom, so that nothing is downloaded."""
    return get_testdata_file(name, download=False)


def test_real_files():
    assert read_dicom(bundled("CT_small.dcm")).shape == (128, 128)
    for name in ("SC_rgb_rle.dcm", "SC_rgb_rle_16bit.dcm", "SC_ybr_full_422_uncompressed.dcm", "examples_palette.dcm"):
        colours = read_dicom(bundled(name))
        assert colours.shape[2] == 3, name
        assert 0 <= colours.min() < 0.1 < 0.9 < colours.max() <= 1, name
        assert read_image(bundled(name)).shape == colours.shape


def test_frames():
    path = bundled("examples_ybr_color.dcm")  # an ultrasound film
    with pytest.raises(DataError, match="contains 30 frames where one image is expected"):
        read_dicom(path)
    first, last = read_dicom(path, 0), read_dicom(path, 29)
    assert first.shape == last.shape == (240, 320, 3)
    assert not np.array_equal(first, last)
    with pytest.raises(DataError, match="there is no frame 30, only 0 to 29"):
        read_dicom(path, 30)

    assert (count_frames(path), count_frames(bundled("CT_small.dcm"))) == (30, 1)


def region(delta: float, right: int = 7, *, kind: int = 1, units: int = 3) -> pydicom.Dataset:
    """A region of an ultrasound image, in cm per pixel."""
    item = pydicom.Dataset()
    item.RegionSpatialFormat, item.PhysicalUnitsXDirection, item.PhysicalUnitsYDirection = kind, units, units
    item.PhysicalDeltaX, item.PhysicalDeltaY = delta, -2 * delta
    item.RegionLocationMinX0, item.RegionLocationMinY0 = 0, 0
    item.RegionLocationMaxX1, item.RegionLocationMaxY1 = right, 7
    return item


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, None),
        ({"PixelSpacing": [0.5, 0.25]}, (0.5, 0.25)),
        ({"PixelSpacing": [0.5, 0.25], "ImagerPixelSpacing": [1, 1]}, (0.5, 0.25)),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (0.1, 0.2)),
        ({"ImagerPixelSpacing": [0.1, 0.2], "EstimatedRadiographicMagnificationFactor": 2}, (0.05, 0.1)),
        ({"PixelSpacing": [0, 0]}, None),
        ({"SequenceOfUltrasoundRegions": [region(0.02)]}, (0.4, 0.2)),
        ({"SequenceOfUltrasoundRegions": [region(0.02), region(0.02)]}, (0.4, 0.2)),
        ({"SequenceOfUltrasoundRegions": [region(0.02), region(0.5, kind=4, units=4)]}, (0.4, 0.2)),
        ({"SequenceOfUltrasoundRegions": [region(0.02), region(0.03)]}, None),
        ({"SequenceOfUltrasoundRegions": [region(0.02, units=4)]}, None),
        ({"SequenceOfUltrasoundRegions": [region(0.02, right=639)]}, None),
    ],
)
def test_pixel_spacing(tmp_path, write_dicom, tags, expected):
    found = read_pixel_spacing(write_dicom(tmp_path / "a.dcm", RAMP, **tags))
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_region_larger_than_its_image_gives_no_spacing():
    assert read_pixel_spacing(bundled("examples_ybr_color.dcm")) is None  # 320 columns, but a region up to column 595


def test_a_file_named_otherwise_is_known_by_its_beginning(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "IM0001", RAMP)
    assert read_image(path).shape == (8, 8, 3)


def test_without_pixels(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    file = pydicom.dcmread(path)
    del file.PixelData
    file.save_as(path)
    with pytest.raises(DataError, match="this DICOM file contains no image"):
        read_dicom(path)


def test_too_few_pixels(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a.dcm: its pixels cannot be decoded \(.*\)") as error:
        read_dicom(path)
    assert "\n" not in str(error.value)


def test_a_compression_without_decoder_says_what_to_install(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    file = pydicom.dcmread(path)
    file.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    file.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless
    file.save_as(path)
    with pytest.raises(DataError, match="its pixels cannot be decoded"):
        read_dicom(path)
