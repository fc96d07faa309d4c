"""All kinds of pictures are read alike, as viewers show them, and only up to the allowed size."""

import os
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtlkit.data import DataError, check_dataset, count_frames, read_image
from mtlkit.data.images import load_image
from mtlkit.errors import TooLargeError

GREY = np.arange(40, dtype=np.uint8).reshape(5, 8) * 6


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff"])
def test_kinds_of_files(tmp_path, suffix):
    Image.fromarray(GREY).save(tmp_path / f"a.{suffix}")
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), np.repeat(GREY[..., None], 3, 2))


def test_jpeg(tmp_path):
    Image.fromarray(np.full((16, 16), 90, np.uint8)).save(tmp_path / "a.jpg")
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - 90).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA"])
def test_kinds_of_pixels(tmp_path, mode):
    Image.fromarray(GREY).convert(mode).save(tmp_path / "a.png")
    assert np.abs(read_image(tmp_path / "a.png").astype(int) - GREY[..., None]).max() <= (3 if mode == "P" else 0)


def test_sixteen_bits(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png")[..., 0], GREY)


def broken(folder: Path) -> dict[str, bytes]:
    Image.fromarray(np.tile(GREY, (20, 20))).save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    return {"text": b"hello", "empty": b"", "cut": whole[: len(whole) // 2], "head": whole[:20]}


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "head"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "dcm"])
def test_broken_image_is_one_sentence(tmp_path, kind, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(broken(tmp_path)[kind])
    with pytest.raises(DataError) as error:
        read_image(path)
    text = str(error.value)
    assert text.startswith(f"{path}: cannot be read as ")
    assert "\n" not in text
    assert text.count(str(path)) == 1


def test_not_a_file(tmp_path):
    with pytest.raises(DataError, match=r"a.png: there is no such file"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="expected an image file, found a folder"):
        read_image(tmp_path)


# --- depth ------------------------------------------------------------------------------------------------------------


def ramp(top: float, dtype: type) -> np.ndarray:
    return np.linspace(0, top, 64 * 64).reshape(64, 64).astype(dtype)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(("bits", "top"), [(8, 200), (8, 255), (9, 256), (9, 300), (10, 1023), (12, 4095), (14, 16383)])
def test_numbers_of_16_bits_are_stretched_by_the_depth_that_holds_them(tmp_path, suffix, bits, top):
    pixels = ramp(top, np.uint16)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    found = load_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(found.pixels[..., 0], (pixels * (255 / (2**bits - 1))).round())
    assert found.remarks == (f"{bits} bits in 16, stretched by {2**bits - 1}",)


def test_all_of_16_bits_need_no_remark(tmp_path):
    Image.fromarray(ramp(65535, np.uint16)).save(tmp_path / "a.png")
    found = load_image(tmp_path / "a.png")
    assert found.remarks == ()
    assert len(np.unique(found.pixels)) == 256


@pytest.mark.parametrize(
    ("top", "low", "remark"),
    [
        (1, 0, "float from 0 to 1, multiplied by 255"),
        (0.5, 0, "float from 0 to 1, multiplied by 255"),
        (255, 0, "float that fits 8 bits, stretched by 255"),
        (4095, 0, "float that fits 12 bits, stretched by 4095"),
        (1000, -1000, "negative numbers, stretched from -1000 to 1000"),
    ],
)
def test_floats(tmp_path, top, low, remark):
    Image.fromarray(ramp(top - low, np.float32) + low).save(tmp_path / "a.tif")
    found = load_image(tmp_path / "a.tif")
    assert found.remarks == (remark,)
    assert found.pixels.max() == (128 if top == 0.5 else 255)
    assert found.pixels.min() == 0


@pytest.mark.parametrize(("top", "low"), [(255, 0), (4095, 0), (1000, -1000)])
def test_integers_of_32_bits(tmp_path, top, low):
    pixels = ramp(top - low, np.int32) + low
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.tif")[..., 0], ((pixels - low) * (255 / (top - low))).round()
    )


def test_floats_that_are_no_numbers_are_black(tmp_path):
    pixels = ramp(1, np.float32)
    pixels[:4, :4] = [np.nan, np.inf, -np.inf, np.nan]
    Image.fromarray(pixels).save(tmp_path / "a.tif")
    found = load_image(tmp_path / "a.tif")
    assert not found.pixels[:4, :4].any()
    assert found.pixels.max() == 255
    assert "contains NaN or infinite values, which are shown as black" in found.remarks
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(tmp_path / "b.tif")
    assert not read_image(tmp_path / "b.tif").any()


def test_white_may_be_zero(tmp_path):
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "a.tif") as image:
        assert image.tag_v2[262] == 0
    assert np.array_equal(read_image(tmp_path / "a.tif")[..., 0], 255 - GREY)
    Image.fromarray(GREY).save(tmp_path / "b.tif", tiffinfo={262: 0})  # for 8 bits, Pillow writes the inverse
    assert np.array_equal(read_image(tmp_path / "b.tif")[..., 0], GREY)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize(("top", "white"), [(65535, 65535), (40000, 65535), (4095, 4095), (255, 255)])
def test_colours_of_16_bits(tmp_path, write_deep, channels, top, white):
    values = (np.arange(4 * 5 * channels) * (top / (20 * channels - 1))).round().astype(np.uint16)
    values = values.reshape(4, 5, channels)
    seen = values[..., :3] if channels > 2 else np.repeat(values[..., :1], 3, 2)
    expected = (seen * (255 / white)).round()
    if channels == 2:
        depth = 2 ** int(seen.max()).bit_length() - 1
        expected = (seen * (255 / max(depth, 255))).round()
    write_deep(tmp_path / "a.png", values)
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)
    for order, compressed in ((">", False), ("<", False), (">", True), ("<", True)):
        if channels > 2:
            write_deep(tmp_path / "a.tif", values, order=order, compressed=compressed)
            alpha = values[..., :3] if channels == 4 else values
            scale = 2 ** max(8, int(alpha.max()).bit_length()) - 1
            assert np.array_equal(read_image(tmp_path / "a.tif"), (seen * (255 / scale)).round()), (order, compressed)


def test_colours_of_16_bits_are_turned(tmp_path, write_deep):
    values = np.arange(60, dtype=np.uint16).reshape(4, 5, 3) * 1000
    plain = (values * (255 / 65535)).round()
    write_deep(tmp_path / "a.png", values, orientation=6)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(plain, -1))
    write_deep(tmp_path / "a.tif", values, orientation=6)
    assert np.array_equal(read_image(tmp_path / "a.tif"), np.rot90(plain, -1))


def test_colours_of_16_bits_that_cannot_be_read(tmp_path, write_deep):
    values = np.arange(80, dtype=np.uint16).reshape(4, 5, 4) * 100
    write_deep(tmp_path / "a.tif", values, extra=1)
    with pytest.raises(DataError, match=r"a.tif: its 16-bit colours \(RGBa;16\w\) cannot be read: save it as RGB"):
        read_image(tmp_path / "a.tif")


def test_check_tells_how_numbers_are_read(own):
    for i, path in enumerate(sorted((own / "images/cyst").iterdir())):
        Image.fromarray(ramp(4095, np.uint16)[:40, :48] + i).save(path)
    report = check_dataset(own)
    found = [finding for finding in report.findings if finding.kind == "reading"]
    assert {(finding.level, finding.text) for finding in found} == {("note", "12 bits in 16, stretched by 4095")}
    assert len(found) == 6


# --- orientation and pages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(tmp_path, suffix, orientation):
    pixels = np.zeros((48, 64), np.uint8)
    pixels[:12, :16], pixels[:12, 48:] = 255, 128
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.T,
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].T,
        8: np.rot90(pixels),
    }
    shown = turned[orientation]
    found = read_image(path)[..., 0]
    assert found.shape == ((48, 64) if orientation < 5 else (64, 48))
    assert np.abs(found.astype(int) - shown).max() <= (9 if suffix == "jpg" else 0)
    if suffix == "png":  # the same with 16 bits
        Image.fromarray(pixels.astype(np.uint16) * 257).save(path, exif=exif)
        assert np.array_equal(read_image(path)[..., 0], shown)


def test_broken_exif_is_done_without(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert np.array_equal(read_image(tmp_path / "a.png")[..., 0], GREY)


def pages(path: Path, *tops: int, **options) -> None:
    first, *others = (Image.fromarray(ramp(top, np.uint16)) for top in tops)
    first.save(path, save_all=True, append_images=others, **options)


def test_pages_are_frames_of_one_grey_scale(tmp_path):
    path = tmp_path / "a.tif"
    pages(path, 1000, 4000, 2000)
    assert count_frames(path) == 3
    with pytest.raises(DataError, match=r"a.tif: contains 3 pages where one image is expected"):
        read_image(path)
    for frame, top in enumerate((1000, 4000, 2000)):
        assert read_image(path, frame).max() == round(top * 255 / 4095)
    with pytest.raises(DataError, match="there is no frame 3, only 0 to 2"):
        read_image(path, 3)


def test_a_thumbnail_is_no_page(tmp_path):
    path = tmp_path / "a.tif"
    thumbnail = Image.fromarray(ramp(100, np.uint8))
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(GREY).save(path, save_all=True, append_images=[thumbnail])
    with Image.open(path) as image:
        image.seek(1)
        assert image.tag_v2[254] == 1
    assert count_frames(path) == 1
    assert np.array_equal(read_image(path)[..., 0], GREY)


# --- hostile files ----------------------------------------------------------------------------------------------------


def bomb(path: Path, side: int = 13_000) -> Path:
    """A tiny file with 169 million pixels."""
    Image.new("1", (side, side)).save(path, **({"compression": "group4"} if path.suffix == ".tif" else {}))
    assert path.stat().st_size < 500_000 + side * side // 500  # JPEG: two bytes for 64 pixels
    return path


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, suffix):
    path = bomb(tmp_path / f"a.{suffix}")
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(TooLargeError) as error:
        read_image(path)
    seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    words = "expected at most 100,000,000 pixels a frame (max_pixels), got 13000 x 13000 = 169,000,000"
    assert str(error.value) == f"{path}: {words}"
    assert seconds < 1
    assert peak < 10_000_000


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "bmp"])
def test_the_limit_can_be_chosen(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(GREY).save(path)  # 40 pixels
    assert read_image(path, max_pixels=40).shape == (5, 8, 3)
    with pytest.raises(TooLargeError, match="expected at most 39 pixels a frame"):
        read_image(path, max_pixels=39)


def test_the_limit_may_be_above_that_of_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.fromarray(GREY).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (5, 8, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_the_limit_holds_for_each_page(tmp_path):
    pages(tmp_path / "a.tif", 1000, 4000)
    with pytest.raises(TooLargeError):
        read_image(tmp_path / "a.tif", 1, max_pixels=64 * 64 - 1)


def test_a_postscript_program_is_not_run(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match=r"a.png: cannot be read as an image"):
        read_image(tmp_path / "a.png")


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.png: expected an image file, found a device or a pipe"):
        read_image(tmp_path / "a.png")


def test_damage_at_every_byte_of_the_head_is_a_data_error(tmp_path):
    for suffix in ("png", "tif", "jpg", "bmp"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(GREY).save(path)
        whole = path.read_bytes()
        for i in range(min(len(whole), 120)):
            for byte in (0, 255):
                path.write_bytes(whole[:i] + bytes([byte]) + whole[i + 1 :])
                with suppress(DataError):
                    assert read_image(path, max_pixels=10_000).dtype == np.uint8
