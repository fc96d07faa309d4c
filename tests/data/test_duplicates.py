"""Similar images: found in every disguise, reported across parts, shown, and kept out of splits."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from mtlkit.cli import main
from mtlkit.data import check_dataset, load_split, make_split, near_duplicates, open_dataset, synthesize_ultrasound
from mtlkit.data.duplicates import surplus


def written_over(image: Image.Image) -> Image.Image:
    image = image.copy()
    ImageDraw.Draw(image).text((8, 8), "LEFT BREAST", fill=255)
    return image


def compressed(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file)


DISGUISES = {
    "the same": lambda image: image,
    "smaller": lambda image: image.resize((image.width // 2, image.height // 2)),
    "compressed": compressed,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "written over": written_over,
    "mirrored": ImageOps.mirror,
}


@pytest.fixture
def busi(tmp_path) -> Path:
    synthesize_ultrasound(tmp_path / "busi", cases=30, size=128)
    return tmp_path / "busi"


def disguise(busi: Path, name: str, number: int = 90, source: int = 1) -> None:
    """A copy of a benign image and its mask, as a separate image."""
    for end in ("", "_mask"):
        image = Image.open(busi / f"benign/benign ({source}){end}.png").convert("L")
        changed = image.resize(DISGUISES[name](image).size, Image.Resampling.NEAREST) if end else DISGUISES[name](image)
        changed.save(busi / f"benign/benign ({number}){end}.png")


@pytest.mark.parametrize("name", DISGUISES)
def test_a_copy_is_found_in_disguise_and_nothing_else(busi, name):
    disguise(busi, name)
    (found,) = near_duplicates(open_dataset(busi))
    assert (found.first.key, found.second.key) == ("benign/benign (1)", "benign/benign (90)")
    assert found.mirrored == (name == "mirrored")
    assert found.bits == 0 if name == "the same" else found.bits <= 50


def test_distances_are_counts_of_bits(busi):
    catalogue = open_dataset(busi)
    pairs = near_duplicates(catalogue, distance=256)
    assert len(pairs) == len(catalogue) * (len(catalogue) - 1) // 2
    assert min(pair.bits for pair in pairs) > 60
    assert 90 < np.median([pair.bits for pair in pairs]) < 135
    with pytest.raises(ValueError, match="distance: expected 0 to 256 bits, got 257"):
        near_duplicates(catalogue, 257)


def test_the_check_tells_which_parts_they_are_in(busi, tmp_path):
    disguise(busi, "compressed")
    catalogue = open_dataset(busi)
    kinds = {finding.kind for finding in check_dataset(busi).findings}
    assert kinds == {"near-duplicate"}
    for seed in range(100):  # until the two are in different parts
        split = make_split(catalogue, seed=seed)
        parts = {key: part for part, keys in split.parts().items() for key in keys}
        one, other = parts["benign/benign (1)"], parts["benign/benign (90)"]
        if one != other:
            break
    split.save(tmp_path / "split.json")
    (finding,) = check_dataset(busi, split=tmp_path / "split.json").findings
    assert finding.kind == "near-duplicate across parts"
    assert finding.level == "warning"
    assert re.search(rf"benign \(1\).png \(\d+ of 256 bits differ\).*in {other}, the other in {one}$", finding.text)


def test_copies_bit_by_bit_are_told_once(busi):
    disguise(busi, "the same")
    report = check_dataset(busi)
    assert [finding.kind for finding in report.findings] == ["duplicate"]
    assert report.near_duplicates == ()


def test_one_of_a_chain_is_left(busi):
    disguise(busi, "compressed")
    disguise(busi, "brighter", number=91)
    disguise(busi, "smaller", number=92, source=3)
    catalogue = open_dataset(busi)
    left_out = surplus(catalogue, near_duplicates(catalogue))
    assert left_out == ("benign/benign (90)", "benign/benign (91)", "benign/benign (92)")
    split = make_split(catalogue, unused=left_out)
    assert split.unused == left_out
    assert sum(map(len, split.parts().values())) == 30


def test_a_saved_split_with_unused_records_is_read_back(busi, tmp_path):
    disguise(busi, "compressed")
    catalogue = open_dataset(busi)
    split = make_split(catalogue, unused=("benign/benign (90)",))
    split.save(tmp_path / "split.json")
    assert load_split(tmp_path / "split.json", catalogue) == split


def test_the_page_shows_both_images(busi, tmp_path, capsys):
    disguise(busi, "mirrored")
    page = tmp_path / "alike.html"
    assert main(["data", "check", str(busi), "--thumbnails", str(page)]) == 0
    assert "looks like" in capsys.readouterr().out
    text = page.read_text(encoding="utf-8")
    pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", text)]
    assert len(pictures) == 2
    left, right = (np.asarray(image.convert("L"), dtype=float) for image in pictures)
    assert np.abs(left[:, ::-1] - right).mean() < 12 < np.abs(left - right).mean()
    assert "benign (90).png" in text
    assert "one being mirrored" in text
    assert main(["data", "check", str(busi), "--thumbnails", str(page)]) == 2  # the page already exists
