"""The same pixels give the same image in any file; unusable tags count as absent, and are reported."""

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import EnhancedCTImageStorage

from mtlkit.data import DataError, read_dicom, read_image, read_pixel_spacing
from mtlkit.data.images import load_image

RAMP = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
PLAIN = RAMP / 4095


def remarks(path) -> str:
    return "; ".join(load_image(path).remarks)


# --- containers -------------------------------------------------------------------------------------------------------


def test_eight_bits_are_the_same_in_every_file(tmp_path, write_dicom):
    pixels = np.arange(40, 40 + 64 * 3, 3, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "b.png")
    Image.fromarray(pixels.astype(np.float32)).save(tmp_path / "c.tif")
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    write_dicom(tmp_path / "d.dcm", pixels, **bits)
    write_dicom(tmp_path / "e.dcm", 255 - pixels, **bits, PhotometricInterpretation="MONOCHROME1")
    colours = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
    write_dicom(tmp_path / "f.dcm", np.repeat(pixels, 3, 1), **bits, **colours, Columns=8)
    write_dicom(tmp_path / "g.dcm", pixels.astype(np.uint16), BitsStored=8, HighBit=7)
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(read_image(path), np.repeat(pixels[..., None], 3, 2)), path.name


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_wide_numbers_that_use_their_depth_are_the_same_in_every_file(tmp_path, write_dicom, bits):
    pixels = np.linspace(0, 2**bits - 1, 64 * 64).reshape(64, 64).round().astype(np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.tif")
    Image.fromarray(pixels.astype(np.float32)).save(tmp_path / "c.tif")
    write_dicom(tmp_path / "d.dcm", pixels, BitsStored=bits, HighBit=bits - 1)
    write_dicom(tmp_path / "e.dcm", pixels, BitsStored=16, HighBit=15)
    images = [read_image(path) for path in sorted(tmp_path.iterdir())]
    assert all(np.array_equal(image, images[0]) for image in images)
    assert len(np.unique(images[0])) == 256


RGB = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
WIDE = {"BitsStored": 16, "HighBit": 15}


@pytest.mark.parametrize("top", [100, 255, 256, 1000, 4000, 30_000, 65_535])
def test_wide_numbers_are_the_same_in_every_file(tmp_path, write_dicom, write_deep, top):
    """Whether or not they use their full depth: scaled by the depth that holds the maximum, for grey and colour."""
    pixels = np.linspace(min(50, top), top, 64 * 64).reshape(64, 64).round().astype(np.uint16)
    colours = np.repeat(pixels[..., None], 3, 2)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.tif")
    Image.fromarray(pixels.astype(np.float32)).save(tmp_path / "c.tif")
    Image.fromarray(pixels.astype(np.int32)).save(tmp_path / "d.tif")
    write_dicom(tmp_path / "e.dcm", pixels, **WIDE)
    write_dicom(tmp_path / "f.dcm", pixels, **WIDE, RescaleSlope=3, RescaleIntercept=-1000)
    write_dicom(tmp_path / "g.dcm", colours.reshape(64, -1), **WIDE, **RGB, Columns=64)
    write_deep(tmp_path / "h.png", colours)
    write_deep(tmp_path / "i.tif", colours)
    depth = 2 ** max(8, top.bit_length()) - 1
    expected = np.repeat((pixels * (255 / depth)).round().astype(np.uint8)[..., None], 3, 2)
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(read_image(path), expected), path.name
        assert top == 65535 or f"stretched by {depth}" in remarks(path)


def test_colours_are_the_same_in_every_file(tmp_path, write_dicom, write_deep, rng):
    colours = rng.integers(0, 3000, (8, 8, 3), dtype=np.uint16)
    write_dicom(tmp_path / "a.dcm", colours.reshape(8, -1), **WIDE, **RGB, Columns=8)
    write_deep(tmp_path / "b.png", colours)
    write_deep(tmp_path / "c.tif", colours)
    for path in sorted(tmp_path.iterdir()):
        assert np.array_equal(read_image(path), (colours * (255 / 4095)).round()), path.name
        assert remarks(path) == "12 bits in 16, stretched by 4095"


def test_a_film_is_the_same_in_every_file(tmp_path, write_dicom):
    frames = [np.linspace(0, top, 64).reshape(8, 8).astype(np.uint16) for top in (1000, 3000, 200)]
    first, *others = map(Image.fromarray, frames)
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    write_dicom(tmp_path / "b.dcm", np.concatenate(frames), **WIDE, Rows=8, NumberOfFrames=3)
    colours = np.concatenate([np.repeat(frame[..., None], 3, 2).reshape(8, -1) for frame in frames])
    write_dicom(tmp_path / "c.dcm", colours, **WIDE, **RGB, Rows=8, Columns=8, NumberOfFrames=3)
    for path in sorted(tmp_path.iterdir()):
        for index, frame in enumerate(frames):
            assert np.array_equal(read_image(path, index)[..., 0], (frame * (255 / 4095)).round()), path.name


@pytest.mark.parametrize("low", [-500, -1, 0, 1, 500])
def test_signed_numbers_are_stretched_between_the_ends_of_the_film(tmp_path, write_dicom, low):
    frames = [np.linspace(low, top, 64).reshape(8, 8).astype(np.int16) for top in (1000, 3000)]
    signed = {"PixelRepresentation": 1, "Rows": 8, "NumberOfFrames": 2}
    path = write_dicom(tmp_path / "a.dcm", np.concatenate(frames), **WIDE, **signed)
    for index, frame in enumerate(frames):
        np.testing.assert_allclose(read_dicom(path, index), (frame - low) / (3000 - low), atol=1e-6)


def test_values_that_fall_are_the_reverse(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", RAMP, RescaleSlope=-1, RescaleIntercept=4095)
    np.testing.assert_allclose(read_dicom(path), 1 - PLAIN, atol=1e-6)
    inverted = {"PhotometricInterpretation": "MONOCHROME1"}
    path = write_dicom(tmp_path / "b.dcm", RAMP, RescaleSlope=-1, RescaleIntercept=4095, **inverted)
    np.testing.assert_allclose(read_dicom(path), PLAIN, atol=1e-6)


def test_frames_with_slopes_of_their_own_are_compared_by_their_values(tmp_path, write_dicom):
    slopes = [
        group(PixelValueTransformationSequence=item(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US"))
        for slope in (1, 3)
    ]
    path, frames = film(tmp_path, write_dicom, 1000, 1000, PerFrameFunctionalGroupsSequence=slopes)
    np.testing.assert_allclose(read_dicom(path, 0), frames[0] / 4095, atol=1e-6)
    np.testing.assert_allclose(read_dicom(path, 1), 3 * frames[1] / 4095, atol=1e-5)


def test_more_bits_than_are_announced(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", RAMP * 2, BitsStored=16, HighBit=15)
    dataset = pydicom.dcmread(path)
    dataset.BitsStored, dataset.HighBit = 12, 11
    dataset.save_as(path)
    assert read_image(path).max() == 255
    assert "bits in 12" not in remarks(path)


def test_colours_of_a_palette_use_its_real_depth(tmp_path, write_dicom):
    indices = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
    for factor in (1, 257):  # 16-bit entries with 8-bit values, and with 16-bit values
        lut = (np.arange(256, dtype=np.uint16) * factor).tobytes()
        tags = {"PhotometricInterpretation": "PALETTE COLOR", "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
        for name in ("Red", "Green", "Blue"):
            tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
            tags[f"{name}PaletteColorLookupTableData"] = lut
        path = write_dicom(tmp_path / "a.dcm", indices, **tags)
        assert np.array_equal(read_image(path)[..., 0], indices), factor


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"WindowCenter": 0, "WindowWidth": 0}, "WindowWidth 0.0 is not valid"),
        ({"WindowCenter": 9, "WindowWidth": -5}, "WindowWidth -5.0 is not valid"),
        (
            {"WindowCenter": 2000, "WindowWidth": 0, "VOILUTFunction": "LINEAR_EXACT"},
            "WindowWidth 0.0 is not valid",
        ),
        ({"WindowCenter": 0, "WindowWidth": 1}, "its window with center 0 and width 1 excludes"),
        ({"WindowCenter": 40, "WindowWidth": 80, "RescaleSlope": 1, "RescaleIntercept": -20000}, "excludes all"),
        ({"WindowCenter": 40000, "WindowWidth": 80}, "excludes all its values, 0 to 4095, and is ignored"),
        ({"WindowCenter": None, "WindowWidth": None}, ""),
        ({"WindowCenter": None, "WindowWidth": 400}, "WindowWidth 400.0 is not valid"),
        ({"WindowWidth": 400}, "WindowWidth 400.0 is not valid"),
        ({"WindowCenter": 400}, "WindowCenter 400.0 is not valid"),
        ({"RescaleSlope": 1}, ""),
        ({"RescaleSlope": 3}, ""),
        ({"RescaleIntercept": -1000}, ""),
        ({"RescaleSlope": 0, "RescaleIntercept": 5}, "RescaleSlope 0.0 is not valid"),
    ],
)
def test_a_window_that_cannot_be_used_counts_as_absent(tmp_path, write_dicom, tags, words):
    path = write_dicom(tmp_path / "a.dcm", RAMP, **tags)
    np.testing.assert_allclose(read_dicom(path), PLAIN, atol=1e-6)
    assert words in remarks(path)
    assert bool(words) == bool(remarks(path))


def test_a_narrow_window_is_exact(tmp_path, write_dicom):
    tags = {"RescaleSlope": 1 / 4095, "RescaleIntercept": 0, "WindowCenter": 0.4565, "WindowWidth": 0.913}
    path = write_dicom(tmp_path / "a.dcm", RAMP, **tags)
    np.testing.assert_allclose(read_dicom(path), np.clip(PLAIN / 0.913, 0, 1), atol=1e-5)
    assert remarks(path) == "WindowWidth 0.913 is below 1 and is interpreted as LINEAR_EXACT"


def test_an_explicit_window_is_not_undone(tmp_path, write_dicom):
    dark = RAMP // 4
    path = write_dicom(tmp_path / "a.dcm", dark, WindowCenter=2048.5, WindowWidth=4097)
    np.testing.assert_allclose(read_dicom(path), dark / 4096, atol=1e-6)
    inverted = {"PhotometricInterpretation": "MONOCHROME1"}
    path = write_dicom(tmp_path / "b.dcm", dark, WindowCenter=2048.5, WindowWidth=4097, **inverted)
    np.testing.assert_allclose(read_dicom(path), 1 - dark / 4096, atol=1e-6)


def test_the_first_window_that_can_be_used(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=[9, 2048.5, 7], WindowWidth=[0, 4097, 50])
    np.testing.assert_allclose(read_dicom(path), RAMP / 4096, atol=1e-6)


def test_functions_of_windows(tmp_path, write_dicom):
    window = {"WindowCenter": 2000, "WindowWidth": 1000}
    path = write_dicom(tmp_path / "a.dcm", RAMP, **window, VOILUTFunction="SIGMOID")
    np.testing.assert_allclose(read_dicom(path), 1 / (1 + np.exp(-4 * (RAMP - 2000.0) / 1000)), atol=1e-5)
    path = write_dicom(tmp_path / "b.dcm", RAMP, **window, VOILUTFunction="CUBIC")
    plain = write_dicom(tmp_path / "c.dcm", RAMP, **window)
    assert np.array_equal(read_dicom(path), read_dicom(plain))
    assert remarks(path) == "VOILUTFunction 'CUBIC' is not valid and is ignored"


def lut(entries: np.ndarray, *, first: int = 0, count: int | None = None) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(entries) if count is None else count, first, 16]
    item.LUTData = entries.astype(np.uint16).tobytes()
    item["LUTData"].VR = "OW"
    return item


def test_tables(tmp_path, write_dicom):
    square = np.arange(4096) ** 2 // 257
    expected = (RAMP.astype(float) ** 2 // 257) / 65535
    for name in ("VOILUTSequence", "ModalityLUTSequence"):
        path = write_dicom(tmp_path / "a.dcm", RAMP, **{name: [lut(square)]})
        np.testing.assert_allclose(read_dicom(path), expected, atol=1e-4)
        path = write_dicom(tmp_path / "b.dcm", RAMP, **{name: [lut(np.arange(1000, 3000), first=1000)]})
        np.testing.assert_allclose(read_dicom(path), RAMP.clip(1000, 2999) / 4095, atol=1e-4)
        assert "12 bits in 16, stretched by 4095" in remarks(path)
        empty = pydicom.Dataset()
        empty.LUTExplanation = "NORMAL"
        for unusable in (empty, lut(square, count=5000), lut(square[:0])):
            path = write_dicom(tmp_path / "c.dcm", RAMP, **{name: [unusable]})
            np.testing.assert_allclose(read_dicom(path), PLAIN, atol=1e-6)
            assert f"{name} 'without a table' is not valid" in remarks(path)


# --- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("padding", "tags"),
    [
        (-32768, {}),
        (-2000, {"PixelPaddingRangeLimit": -1500}),
        (-1500, {"PixelPaddingRangeLimit": -2000}),
        (3000, {}),
    ],
)
def test_padding_takes_no_part_in_the_stretch_and_is_black(tmp_path, write_dicom, padding, tags):
    tissue = np.linspace(0, 2000, 64 * 64).reshape(64, 64).astype(np.int16)
    padded = tissue.copy()
    padded[:, :16] = padding
    signed = {"PixelRepresentation": 1, "BitsStored": 16, "HighBit": 15}
    path = write_dicom(tmp_path / "a.dcm", padded, **signed, PixelPaddingValue=padding, **tags)
    low = tissue[:, 16:].min()
    found = read_dicom(path)
    assert not found[:, :16].any()
    np.testing.assert_allclose(found[:, 16:], (tissue[:, 16:] - low) / (2000 - low), atol=1e-6)
    assert remarks(path) == f"signed numbers, stretched from {low} to 2000"
    inverted = {"PhotometricInterpretation": "MONOCHROME1"}
    path = write_dicom(tmp_path / "b.dcm", padded, **signed, **inverted, PixelPaddingValue=padding, **tags)
    assert not read_dicom(path)[:, :16].any()
    np.testing.assert_allclose(read_dicom(path)[:, 16:], 1 - found[:, 16:], atol=1e-6)


def test_white_padding(tmp_path, write_dicom):
    padded = RAMP.copy()
    padded[:, :16] = 65535
    path = write_dicom(tmp_path / "a.dcm", padded, BitsStored=16, HighBit=15, PixelPaddingValue=65535)
    assert not read_dicom(path)[:, :16].any()
    assert read_dicom(path)[:, 16:].max() == 1
    path = write_dicom(tmp_path / "b.dcm", np.full_like(RAMP, 7), PixelPaddingValue=7)
    assert not read_dicom(path).any()


# --- frames -----------------------------------------------------------------------------------------------------------


def film(tmp_path, write_dicom, *tops: int, **tags):
    frames = [np.linspace(0, top, 64).reshape(8, 8).astype(np.uint16) for top in tops]
    path = write_dicom(tmp_path / "film.dcm", np.concatenate(frames), Rows=8, NumberOfFrames=len(tops), **tags)
    return path, frames


def test_a_film_has_one_grey_scale(tmp_path, write_dicom):
    path, frames = film(tmp_path, write_dicom, 1000, 4000, 2000)
    for i, frame in enumerate(frames):
        np.testing.assert_allclose(read_dicom(path, i), frame / 4095, atol=1e-6)
    path, frames = film(tmp_path, write_dicom, 500, 100)  # differs from the first file read
    np.testing.assert_allclose(read_dicom(path, 1), frames[1] / 511, atol=1e-6)


def test_a_window_counts_for_the_film(tmp_path, write_dicom):
    path, frames = film(tmp_path, write_dicom, 4000, 100, WindowCenter=3000, WindowWidth=1001)
    np.testing.assert_allclose(read_dicom(path, 0), ((frames[0] - 2999.5) / 1000 + 0.5).clip(0, 1), atol=1e-5)
    assert not read_dicom(path, 1).any()  # dark, but not because of a missing window
    path, frames = film(tmp_path, write_dicom, 2000, 1000, WindowCenter=30000, WindowWidth=10)
    np.testing.assert_allclose(read_dicom(path, 1), frames[1] / 2047, atol=1e-6)


def group(**items: pydicom.Dataset) -> pydicom.Dataset:
    found = pydicom.Dataset()
    for name, item in items.items():
        setattr(found, name, [item])
    return found


def item(**tags) -> pydicom.Dataset:
    found = pydicom.Dataset()
    for name, value in tags.items():
        setattr(found, name, value)
    return found


def test_windows_of_frames_in_functional_groups(tmp_path, write_dicom):
    narrow, wide = item(WindowCenter=500.5, WindowWidth=1001), item(WindowCenter=2000.5, WindowWidth=4001)
    shared = group(PixelMeasuresSequence=item(PixelSpacing=[0.5, 0.25]), FrameVOILUTSequence=wide)
    tags = {"SharedFunctionalGroupsSequence": [shared]}
    tags["PerFrameFunctionalGroupsSequence"] = [group(FrameVOILUTSequence=narrow), group()]
    path, frames = film(tmp_path, write_dicom, 4000, 2000, **tags)
    np.testing.assert_allclose(read_dicom(path, 0), (frames[0] / 1000).clip(0, 1), atol=1e-6)
    np.testing.assert_allclose(read_dicom(path, 1), frames[1] / 4000, atol=1e-6)
    assert read_pixel_spacing(path) == (0.5, 0.25)


@pytest.mark.parametrize("shape", ["", "IDENTITY", "INVERSE"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_frames_of_an_enhanced_file_are_those_of_highdicom(tmp_path, write_dicom, photometric, shape):
    hd = pytest.importorskip("highdicom", reason="highdicom is not installed: pip install 'mtlkit[dicom]'")
    windows = [{"WindowCenter": [500, 40], "WindowWidth": [400, 9]}, {"WindowCenter": 900, "WindowWidth": 1500}]
    windows.append({"WindowCenter": 700, "WindowWidth": 300, "VOILUTFunction": "SIGMOID"})
    values = item(RescaleSlope=1, RescaleIntercept=-24, RescaleType="HU")
    tags = {
        "SOPClassUID": EnhancedCTImageStorage,
        "PhotometricInterpretation": photometric,
        "SharedFunctionalGroupsSequence": [group(PixelValueTransformationSequence=values)],
        "PerFrameFunctionalGroupsSequence": [group(FrameVOILUTSequence=item(**window)) for window in windows],
    }
    tags |= dict.fromkeys(("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"), "1.2.3")
    tags |= {"PresentationLUTShape": shape} if shape else {}
    path, _ = film(tmp_path, write_dicom, 1000, 2000, 1500, **tags)
    image = hd.imread(path)
    for index in range(3):
        expected = image.get_frame(index, as_index=True, apply_voi_transform=True)
        np.testing.assert_allclose(read_dicom(path, index), expected, atol=1e-6)
    contradicting = (photometric, shape) in (("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE"))
    words = f"PresentationLUTShape {shape} contradicts {photometric} and takes precedence"
    assert (words in load_image(path, 0).remarks) == contradicting


# --- decoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("SC_rgb_jls_lossy_line.dcm", "pylibjpeg pylibjpeg-libjpeg"),
        ("SC_rgb_jpeg_gdcm.dcm", "pylibjpeg pylibjpeg-libjpeg"),
    ],
)
def test_a_missing_decoder_is_named_with_what_adds_it(monkeypatch, name, packages):
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", False)
    with pytest.raises(DataError, match=rf"needs a decoder: pip install {packages}\)$"):
        read_image(get_testdata_file(name, download=False))


def test_damaged_data_do_not_ask_for_packages(tmp_path):
    dataset = pydicom.dcmread(get_testdata_file("SC_rgb_jpeg_dcmtk.dcm", download=False))
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xd9"])
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(DataError, match="its pixels cannot be decoded") as error:
        read_image(tmp_path / "a.dcm")
    assert "pip install" not in str(error.value)
    assert not str(error.value).endswith(":)")
