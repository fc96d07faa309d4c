"""DICOM files are opened with or without preamble; readers never read beyond the file or the pixel limit."""

import os
import time
import tracemalloc
import warnings
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian

from mtlkit.data import (
    DataError,
    check_dataset,
    count_frames,
    read_dicom,
    read_dicom_tags,
    read_image,
    read_mask,
    read_pixel_spacing,
)
from mtlkit.data.dicom_file import is_dicom, open_dicom
from mtlkit.errors import TooLargeError

RAMP = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)
READERS = [
    read_image,
    read_dicom,
    count_frames,
    read_dicom_tags,
    read_pixel_spacing,
    lambda path: read_mask([path], (8, 8)),
]


# --- what is opened ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("name", ["old.dcm", "old", "1.2.840.113"])
def test_without_preamble(tmp_path, write_dicom, name, implicit):
    dataset = pydicom.dcmread(write_dicom(tmp_path / "new.dcm", RAMP, Modality="MG", SOPClassUID="1.2"))
    del dataset.file_meta
    dataset.preamble = None
    dataset.save_as(tmp_path / name, enforce_file_format=False, implicit_vr=implicit, little_endian=True)
    assert is_dicom(tmp_path / name)
    np.testing.assert_allclose(read_dicom(tmp_path / name), RAMP / 4095, rtol=1e-6)
    assert read_image(tmp_path / name).shape == (8, 8, 3)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_without_transfer_syntax(tmp_path, write_dicom, syntax):
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", RAMP, SOPClassUID="1.2"))
    with (tmp_path / "b.dcm").open("wb") as file:
        file.write(bytes(128) + b"DICM")
        body = tmp_path / "body"
        dataset.preamble, meta = None, dataset.file_meta
        del dataset.file_meta
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = RAMP.astype(">u2").tobytes()
        assert meta.TransferSyntaxUID
        little = syntax == ExplicitVRLittleEndian
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pydicom.dcmwrite(body, dataset, enforce_file_format=False, implicit_vr=False, little_endian=little)
        file.write(body.read_bytes())
    np.testing.assert_allclose(read_dicom(tmp_path / "b.dcm"), RAMP / 4095, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a", b"hello world"),
        ("a", b""),
        ("a", b"\x08\x00"),
        ("a", b"\x08\x00\x05\x00\xff\xff\xff\x7f"),  # longer than the file
        ("a.txt", b"\x08\x00\x05\x00\x00\x00\x00\x00"),
    ],
)
def test_what_is_no_dicom(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert not is_dicom(tmp_path / name)


def test_pipes_and_folders_are_no_dicom(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert not is_dicom(tmp_path / "pipe")
    assert not is_dicom(tmp_path / "folder")
    assert not is_dicom(tmp_path / "nothing")
    (tmp_path / "pipe").rename(tmp_path / "pipe.dcm")
    for reader in READERS[:-1]:
        with pytest.raises(DataError, match=r"pipe.dcm: expected a.* file, found a .*device"):
            reader(tmp_path / "pipe.dcm")


# --- counts -----------------------------------------------------------------------------------------------------------


def tampered(path: Path, **values: bytes) -> Path:
    """Writes arbitrary bytes into tags."""
    dataset = pydicom.dcmread(path)
    for name, value in values.items():
        tag = pydicom.tag.Tag(name)
        dataset[tag] = pydicom.dataelem.RawDataElement(
            tag, pydicom.datadict.dictionary_VR(tag), len(value), value, 0, False, True
        )
    dataset.save_as(path.with_suffix(".draft"))
    return path.with_suffix(".draft").replace(path)


@pytest.mark.parametrize("number", [b"2147483647", b"3 ", b"4294967296"])
def test_frames_are_counted_against_the_bytes(tmp_path, write_dicom, number):
    path = tampered(write_dicom(tmp_path / "a.dcm", RAMP), NumberOfFrames=number)
    assert path.stat().st_size < 800
    words = rf"a.dcm: NumberOfFrames: expected .*, got .*{number.decode().strip()}"
    for reader in READERS:
        with pytest.raises(DataError, match=words):
            reader(path)


@pytest.mark.parametrize("number", [b"-3", b"0 ", b"1A", b"1.5 ", b"1\\2 ", b"nan ", b"1e9 ", b"\xff\xff"])
def test_a_number_of_frames_that_is_none(tmp_path, write_dicom, number):
    path = tampered(write_dicom(tmp_path / "a.dcm", RAMP), NumberOfFrames=number)
    for reader in READERS:
        with pytest.raises(DataError, match=r"a.dcm: NumberOfFrames: expected a") as error:
            reader(path)
        assert len(str(error.value)) < 300


def test_frames_of_compressed_pixels_are_counted(tmp_path):
    dataset = pydicom.dcmread(get_testdata_file("SC_rgb_rle_2frame.dcm", download=False))
    dataset.NumberOfFrames = 1_000_000
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(DataError, match=r"NumberOfFrames: expected at most \d{1,4}, by the size of the file"):
        count_frames(tmp_path / "a.dcm")


@pytest.mark.parametrize(("rows", "columns"), [(65535, 65535), (20000, 20000)])
def test_too_many_pixels(tmp_path, write_dicom, rows, columns):
    path = write_dicom(tmp_path / "a.dcm", RAMP, Rows=rows, Columns=columns)
    for reader in (read_image, read_dicom, lambda path: read_mask([path], (8, 8))):
        with pytest.raises(TooLargeError, match=f"got {columns} x {rows} = {rows * columns:,}"):
            reader(path)
    path = write_dicom(tmp_path / "b.dcm", RAMP)
    assert read_dicom(path, max_pixels=64).shape == (8, 8)
    with pytest.raises(TooLargeError, match="expected at most 63 pixels a frame"):
        read_dicom(path, max_pixels=63)


def test_compressed_pixels_that_are_more_than_the_tags_say(tmp_path):
    dataset = pydicom.dcmread(get_testdata_file("SC_rgb_jpeg_dcmtk.dcm", download=False))  # 100 x 100
    dataset.Rows = dataset.Columns = 8
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(TooLargeError, match=r"expected at most 9,999 pixels a frame.*got 100 x 100"):
        read_image(tmp_path / "a.dcm", max_pixels=9_999)


# --- deflated files ---------------------------------------------------------------------------------------------------


def deflated(path: Path, dataset: pydicom.Dataset, extra: int = 0) -> Path:
    """A deflated file, with `extra` bytes of pixels more than its tags announce."""
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(path)
    if extra:
        whole = path.read_bytes()
        start = 132 + 12 + int.from_bytes(whole[140:144], "little")
        body = zlib.decompress(whole[start:], -15)
        at = body.index(b"\xe0\x7f\x10\x00OW")
        engine = zlib.compressobj(9, zlib.DEFLATED, -15)
        parts = [engine.compress(body[: at + 8] + extra.to_bytes(4, "little"))]
        parts += [engine.compress(bytes(10**6)) for _ in range(extra // 10**6)]
        path.write_bytes(whole[:start] + b"".join(parts) + engine.flush())
    return path


def test_deflated(tmp_path, write_dicom):
    plain = write_dicom(tmp_path / "a.dcm", RAMP, PixelSpacing=[1, 2], patient="P")
    path = deflated(tmp_path / "b.dcm", pydicom.dcmread(plain))
    assert np.array_equal(read_dicom(path), read_dicom(plain))
    assert read_dicom_tags(path).patient == "P"
    assert read_pixel_spacing(path) == (1, 2)
    assert np.array_equal(read_dicom(get_testdata_file("image_dfl.dcm", download=False)).shape, (512, 512))


def measured(reader, path: Path) -> tuple[float, int, Exception | None]:
    """Seconds, bytes and the error."""
    tracemalloc.start()
    start, raised = time.perf_counter(), None
    try:
        reader(path)
    except DataError as error:
        raised = error
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return seconds, peak, raised


def test_a_deflated_file_is_not_inflated_beyond_what_its_tags_announce(tmp_path, write_dicom):
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", RAMP))
    path = deflated(tmp_path / "b.dcm", dataset, extra=300 * 10**6)
    assert path.stat().st_size < 400_000
    for reader in (read_image, read_dicom, lambda path: read_mask([path], (8, 8))):
        seconds, peak, error = measured(reader, path)
        assert "inflates to more than the" in str(error)
        assert seconds < 5
        assert peak < 150 * 10**6
    for reader in (count_frames, read_dicom_tags, read_pixel_spacing):  # these read only the tags
        seconds, peak, error = measured(reader, path)
        assert error is None
        assert seconds < 1
        assert peak < 10 * 10**6


def test_a_deflated_film_of_more_than_the_limit(tmp_path, write_dicom):
    tags = {"Rows": 8192, "Columns": 8192, "NumberOfFrames": 6}
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", RAMP, **tags))
    path = deflated(tmp_path / "b.dcm", dataset, extra=8192 * 8192 * 2 * 6)
    seconds, peak, error = measured(lambda path: read_dicom(path, 0), path)
    assert isinstance(error, TooLargeError)
    assert "expected at most 600,000,000 bytes in a deflated file (max_pixels), got " in str(error)
    assert seconds < 2
    assert peak < 10 * 10**6


# --- tags -------------------------------------------------------------------------------------------------------------

VALUES = [b"", b"N/A ", b"nan ", b"inf ", b"-1", b"1e308 ", b"1\\2\\3 ", b"\xff\xfe\x00\x01", b"\\", b"9" * 400]
OPTIONAL = [
    "WindowCenter",
    "WindowWidth",
    "RescaleSlope",
    "RescaleIntercept",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "EstimatedRadiographicMagnificationFactor",
    "PixelPaddingValue",
    "VOILUTFunction",
    "ImageLaterality",
    "ViewPosition",
    "PatientID",
    "VOILUTSequence",
    "ModalityLUTSequence",
    "ViewCodeSequence",
    "SequenceOfUltrasoundRegions",
    "SpecificCharacterSet",
]
NEEDED = ["Rows", "Columns", "BitsAllocated", "BitsStored", "SamplesPerPixel", "PixelRepresentation"]
NEEDED += ["PhotometricInterpretation", "NumberOfFrames"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPTIONAL)
def test_an_optional_tag_of_any_value_is_done_without(tmp_path, write_dicom, name):
    for value in VALUES:
        path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=2000, WindowWidth=4000)
        with suppress(Exception):  # values that pydicom itself cannot write are not tested
            tampered(path, **{name: value})
        pixels = read_image(path)
        assert pixels.shape == (8, 8, 3), value
        read_dicom_tags(path)
        spacing = read_pixel_spacing(path)
        assert spacing is None or min(spacing) > 0, value


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NEEDED)
def test_a_needed_tag_of_any_value_is_read_or_named(tmp_path, write_dicom, name):
    for value in VALUES:
        path = write_dicom(tmp_path / "a.dcm", RAMP)
        with suppress(Exception):
            tampered(path, **{name: value})
        for reader in READERS:
            try:
                reader(path)
            except DataError as error:
                assert str(error).startswith(f"{path}: "), value  # noqa: PT017 - it may be read as well
                assert len(str(error)) < 600, value  # noqa: PT017


@pytest.mark.filterwarnings("ignore")
def test_damage_anywhere_in_the_tags_is_a_data_error(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=2000, WindowWidth=4000)
    whole = path.read_bytes()
    for i in range(0, len(whole) - 128, 3):
        path.write_bytes(whole[:i] + b"\xff" + whole[i + 1 :])
        for reader in READERS:
            with suppress(DataError):
                reader(path)


def test_sequences_nested_too_deeply(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    whole, deep = path.read_bytes(), b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    at = whole.index(b"\x10\x00\x20\x00")  # PatientID
    path.write_bytes(whole[:at] + deep * 50_000)
    for reader in READERS:
        with pytest.raises(DataError, match=r"a.dcm: "):
            reader(path)


def test_what_is_not_used_is_told(tmp_path, write_dicom, cmmd):
    path = cmmd / "CMMD/D1-0001/07-18-2010/series/1-LCC.dcm"
    write_dicom(path, patient="D1-0001", view="CC", ImageLaterality="L", WindowCenter=5, WindowWidth=0)
    (finding,) = (finding for finding in check_dataset(cmmd).findings if finding.kind == "reading")
    assert (finding.level, finding.path) == ("note", path)
    assert finding.text == "WindowWidth 0.0 is not valid and is ignored"
    assert open_dicom(path).remarks == []
