"""Which pixels are lesion follows from the kind of mask file; otherwise the mask is rejected with its values."""

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mtlkit.data import DataError, check_dataset, open_dataset, read_mask
from mtlkit.errors import MismatchError, TooLargeError

SIZE = (64, 64)
LESION = np.zeros(SIZE, bool)
LESION[20:40, 20:40] = True
WHITE = LESION.astype(np.uint8) * 255
ZERO, FULL = np.zeros_like(WHITE), np.full_like(WHITE, 255)


def lesion(path) -> np.ndarray:
    return read_mask([path], SIZE).astype(bool)


def test_masks_are_merged_and_cut_above_127(tmp_path):
    for name, values in (("a", [0, 127, 128, 255]), ("b", [255, 0, 0, 0]), ("c", [0, 0, 1, 0])):
        Image.fromarray(np.array([values], np.uint8)).save(tmp_path / f"{name}.png")
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    assert read_mask(paths[:1], (1, 4)).tolist() == [[0, 0, 1, 1]]
    assert read_mask(paths[:2], (1, 4)).tolist() == [[1, 0, 1, 1]]
    assert read_mask(paths[2:], (1, 4)).tolist() == [[0, 0, 1, 0]]  # a mask of 0 and 1
    with pytest.raises(DataError, match=r"a.png: the mask has 4 x 1 pixels, its image 2 x 3"):
        read_mask(paths, (3, 2))


# --- kinds that are read ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 2, 100, 127, 128, 254, 255])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_grey_of_two_values(tmp_path, value, dtype):
    path = tmp_path / ("a.tif" if dtype in (np.int32, np.float32) else "a.png")
    Image.fromarray(LESION.astype(dtype) * dtype(value)).save(path)
    assert np.array_equal(lesion(path), LESION)


@pytest.mark.parametrize("value", [0.5, 1, 4095, 65535])
def test_grey_of_other_depths(tmp_path, value):
    Image.fromarray(LESION.astype(np.float32) * np.float32(value)).save(tmp_path / "a.tif")
    assert np.array_equal(lesion(tmp_path / "a.tif"), LESION)


@pytest.mark.parametrize(
    "pixels",
    [
        np.stack([WHITE] * 3, -1),
        np.stack([WHITE, ZERO, ZERO], -1),
        np.stack([ZERO, WHITE, ZERO], -1),
        np.stack([ZERO, ZERO, WHITE // 4], -1),
        np.where(
            np.arange(64)[:, None, None] < 30, np.stack([WHITE, ZERO, ZERO], -1), np.stack([ZERO, WHITE, ZERO], -1)
        ),
        np.stack([WHITE, WHITE, WHITE, FULL], -1),
        np.stack([FULL, FULL, FULL, WHITE], -1),
        np.stack([ZERO, ZERO, ZERO, WHITE], -1),
        np.stack([WHITE, ZERO, ZERO, WHITE], -1),
        np.stack([FULL, ZERO, ZERO, WHITE // 2], -1),
        np.stack([WHITE, FULL], -1),
        np.stack([WHITE, WHITE], -1),
        np.stack([ZERO, WHITE], -1),
    ],
    ids=lambda pixels: " ".join("varies" if np.ptp(one) else str(one.flat[0]) for one in np.moveaxis(pixels, -1, 0)),
)
def test_colours_and_alpha(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(lesion(tmp_path / "a.png"), LESION)


def palette(colours: list[tuple[int, int, int]]) -> list[int]:
    return [part for colour in colours for part in colour]


VOC = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128)]


@pytest.mark.parametrize("index", [1, 2, 3, 4])
def test_an_index_counts_whatever_its_colour(tmp_path, index):
    for colours in (
        VOC,
        [(i, i, i) for i in range(5)],
        [(255, 255, 255), (9, 9, 200), (0, 0, 0), (1, 0, 0), (0, 1, 0)],
    ):
        image = Image.fromarray(LESION.astype(np.uint8) * index, "P")
        image.putpalette(palette(colours))
        image.save(tmp_path / "a.png")
        if colours[0] == (255, 255, 255) and index == 2:
            continue  # black on white is tested below
        assert np.array_equal(lesion(tmp_path / "a.png"), LESION), colours


def test_several_labels_of_a_palette_are_all_lesion(tmp_path):
    labels = LESION.astype(np.uint8)
    labels[20:30] *= 2
    image = Image.fromarray(labels, "P")
    image.putpalette(palette(VOC))
    image.save(tmp_path / "a.png")
    assert np.array_equal(lesion(tmp_path / "a.png"), LESION)


def test_a_palette_of_black_and_white_is_as_grey(tmp_path):
    image = Image.fromarray((~LESION).astype(np.uint8), "P")
    image.putpalette(palette([(255, 255, 255), (0, 0, 0)]))
    image.save(tmp_path / "a.png")
    assert np.array_equal(lesion(tmp_path / "a.png"), LESION)


@pytest.mark.parametrize("quality", [20, 60, 95])
@pytest.mark.parametrize("value", [60, 128, 255])
def test_noise_of_jpeg(tmp_path, quality, value):
    Image.fromarray(LESION.astype(np.uint8) * value).save(tmp_path / "a.jpg", quality=quality)
    assert (lesion(tmp_path / "a.jpg") != LESION).sum() <= 4
    with Image.open(tmp_path / "a.jpg") as image:
        image.save(tmp_path / "b.png")  # with its noise
    assert (lesion(tmp_path / "b.png") != LESION).sum() <= 4


@pytest.mark.parametrize("radius", [0.5, 1, 3])
def test_soft_edges_are_cut_in_the_middle(tmp_path, radius):
    Image.fromarray(WHITE).filter(ImageFilter.GaussianBlur(radius)).save(tmp_path / "a.png")
    assert (lesion(tmp_path / "a.png") != LESION).sum() <= 12 * radius  # the corners
    Image.fromarray(WHITE).resize((50, 50), Image.Resampling.BICUBIC).resize(SIZE, Image.Resampling.BICUBIC).save(
        tmp_path / "b.png"
    )
    assert (lesion(tmp_path / "b.png") != LESION).sum() <= 80


def test_one_bit(tmp_path):
    Image.fromarray(WHITE).convert("1").save(tmp_path / "a.png")
    assert np.array_equal(lesion(tmp_path / "a.png"), LESION)


def test_empty_and_full(tmp_path):
    for name, pixels, expected in (("empty", ZERO, 0), ("full", FULL, 1), ("ones", FULL // 255, 1)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        Image.fromarray(pixels).save(tmp_path / f"{name}.jpg")
        assert read_mask([tmp_path / f"{name}.png"], SIZE).mean() == expected
        assert read_mask([tmp_path / f"{name}.jpg"], SIZE).mean() == expected


def test_orientation(tmp_path):
    corner = np.zeros((48, 64), np.uint8)
    corner[:12, :12] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(corner).save(tmp_path / "a.png", exif=exif)
    found = read_mask([tmp_path / "a.png"], (64, 48))
    assert found[:12, -12:].all()
    assert found.sum() == 144


# --- what is refused --------------------------------------------------------------------------------------------------


def labels(*values: float) -> np.ndarray:
    found = np.zeros(SIZE, np.float32)
    for i, value in enumerate(values[1:]):
        found[10 : 30 + i, 10 + 15 * i : 25 + 15 * i] = value
    return found + (values[0] * (found == 0))


REFUSED: dict[str, Callable[[], Image.Image]] = {
    "0, 1, 2": lambda: Image.fromarray(labels(0, 1, 2).astype(np.uint8)),
    "0, 127, 255": lambda: Image.fromarray(labels(0, 127, 255).astype(np.uint8)),
    "0, 1, 255": lambda: Image.fromarray(labels(0, 1, 255).astype(np.uint8)),
    "0, 1000, 4000": lambda: Image.fromarray(labels(0, 1000, 4000).astype(np.uint16)),
    "0, 85, 170, 255": lambda: Image.fromarray(labels(0, 85, 170, 255).astype(np.uint8)),
}


@pytest.mark.parametrize("values", REFUSED)
def test_more_than_two_values_are_listed(tmp_path, values):
    REFUSED[values]().save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"a.png: expected a mask of two values, got {values}: which are lesion\?$"):
        lesion(tmp_path / "a.png")


def test_a_third_value_in_jpeg(tmp_path):
    Image.fromarray(labels(0, 127, 255).astype(np.uint8)).save(tmp_path / "a.jpg", quality=90)
    with pytest.raises(DataError, match="expected a mask of two values, got 0, "):
        lesion(tmp_path / "a.jpg")


def test_a_photo_is_no_mask(tmp_path):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    noise = Image.fromarray(rng.integers(0, 256, SIZE, dtype=np.uint8))
    for image in (smooth, noise):
        for suffix in ("png", "jpg"):
            image.save(tmp_path / f"a.{suffix}")
            with pytest.raises(DataError, match=r"expected a mask of two values, got .* and \d+ more"):
                lesion(tmp_path / f"a.{suffix}")


def test_a_faint_jpeg_is_refused(tmp_path):
    Image.fromarray(LESION.astype(np.uint8) * 3).save(tmp_path / "a.jpg", quality=95)
    with pytest.raises(DataError, match=r"got \d+ to \d+, which may be JPEG noise: save it as PNG"):
        lesion(tmp_path / "a.jpg")


def test_colours_without_black(tmp_path):
    Image.fromarray(np.stack([FULL, 255 - WHITE, 255 - WHITE], -1)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="expected a mask with black for background, got the colours #ff0000, #ffffff"):
        lesion(tmp_path / "a.png")


def test_alpha_and_colours_that_differ(tmp_path):
    opaque = FULL.copy()
    opaque[:10] = 0
    Image.fromarray(np.stack([WHITE, WHITE, WHITE, opaque], -1)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="expected opaque pixels to be all lesion, got 3,056 of 3,456 that are black"):
        lesion(tmp_path / "a.png")


def test_the_void_of_labelling_tools(tmp_path):
    image = Image.fromarray(labels(0, 1, 255).astype(np.uint8), "P")
    image.putpalette(palette(VOC + [(224, 224, 192)] * 251))
    image.save(tmp_path / "a.png")
    with pytest.raises(DataError, match="expected background and lesion, got the indices 0, 1, 255: is 255 lesion"):
        lesion(tmp_path / "a.png")


def test_no_numbers(tmp_path):
    Image.fromarray(np.where(LESION, np.nan, 0).astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="expected a mask of two values, got NaN or infinite ones"):
        lesion(tmp_path / "a.tif")


def test_size_pages_and_limit(tmp_path):
    Image.fromarray(WHITE).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(WHITE)])
    with pytest.raises(DataError, match=r"a.tif: contains 2 pages where one image is expected"):
        lesion(tmp_path / "a.tif")
    Image.fromarray(WHITE[:50]).save(tmp_path / "b.png")
    with pytest.raises(MismatchError, match=r"b.png: the mask has 64 x 50 pixels, its image 64 x 64"):
        lesion(tmp_path / "b.png")
    with pytest.raises(TooLargeError, match=r"b.png: expected at most 99 pixels"):
        read_mask([tmp_path / "b.png"], SIZE, max_pixels=99)


# --- DICOM ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 255, 4095])
def test_dicom(tmp_path, write_dicom, value):
    path = write_dicom(tmp_path / "a.dcm", LESION.astype(np.uint16) * value, WindowCenter=0, WindowWidth=9)
    assert np.array_equal(lesion(path), LESION)
    path = write_dicom(tmp_path / "b.dcm", (~LESION).astype(np.uint16), PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(lesion(path), LESION)


def test_frames_of_a_dicom_segmentation_are_merged(tmp_path, write_dicom):
    upper, lower = LESION.copy(), LESION.copy()
    upper[30:], lower[:30] = False, False
    path = write_dicom(tmp_path / "a.dcm", np.concatenate([upper, lower]).astype(np.uint16), Rows=64, NumberOfFrames=2)
    with pytest.raises(DataError, match="contains 2 frames where one image is expected"):
        lesion(path)
    tags = {"Rows": 64, "NumberOfFrames": 2, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}
    path = write_dicom(tmp_path / "b.dcm", np.concatenate([upper, lower]).astype(np.uint16), **tags)
    assert np.array_equal(lesion(path), LESION)


def test_dicom_masks_of_dicom_images(own, write_dicom):
    square = np.zeros((40, 48), np.uint16)
    square[10:20, 10:20] = 1
    for i in range(6):
        (own / f"images/cyst/scan {i}.png").unlink()
        (own / f"masks/cyst/scan {i}.png").unlink()
        write_dicom(own / f"images/cyst/scan {i}.dcm")
        write_dicom(own / f"masks/cyst/scan {i}.dcm", square)
    write_dicom(own / "images/cyst/.hidden.dcm").write_bytes(b"of a Mac")
    assert not [finding for finding in check_dataset(own).findings if finding.level == "error"]
    records = [record for record in open_dataset(own).records if record.label == 0]
    assert [read_mask(record.masks, (40, 48)).sum() for record in records] == [100] * 6


# --- colours of 16 bits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("value", [1, 255, 300, 65535])
def test_masks_in_colours_of_16_bits(tmp_path, write_deep, suffix, value):
    lesion = np.zeros((40, 48), np.uint16)
    lesion[10:18, 10:22] = value
    path = tmp_path / f"a.{suffix}"
    for colours in (np.repeat(lesion[..., None], 3, 2), np.stack([lesion, 0 * lesion, 0 * lesion], -1)):
        write_deep(path, colours)
        assert np.array_equal(read_mask([path], (40, 48)), lesion > 0)
        opaque = np.full((40, 48, 1), 65535, np.uint16)
        write_deep(path, np.concatenate([colours, opaque], -1))
        assert np.array_equal(read_mask([path], (40, 48)), lesion > 0)


def test_transparency_of_16_bits(tmp_path, write_deep):
    lesion = np.zeros((40, 48), np.uint16)
    lesion[10:18, 10:22] = 65535
    for colours in (np.full((40, 48, 3), 65535, np.uint16), np.full((40, 48, 1), 65535, np.uint16)):
        write_deep(tmp_path / "a.png", np.concatenate([colours, lesion[..., None]], -1))
        assert np.array_equal(read_mask([tmp_path / "a.png"], (40, 48)), lesion > 0)
