"""What is found in files and folders: names, frames, masks, views, and what stands in the way."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from mtlkit.data import DataError, read_image
from mtlkit.inference.inputs import Problems, find_exams, find_images, view_of


def keys(*inputs, masks=None, needed=False, skip=False):
    records, _ = find_images(inputs, masks, Problems(skip=skip), masks_needed=needed)
    return [record.key for record in records]


def test_folders_are_searched_in_a_fixed_order(image, tmp_path):
    for name in ("scans/2.png", "scans/10.png", "scans/b/1.jpg", "scans/.hidden.png", "scans/.git/x.png"):
        image(name)
    assert keys(tmp_path / "scans") == ["2", "10", "b/1"]
    assert keys(tmp_path / "scans/10.png", tmp_path / "scans/b") == ["10", "1"]


def test_earlier_predictions_are_no_images(image, tmp_path):
    image("scans/a.png")
    image("scans/out/masks/a.png")
    (tmp_path / "scans/out/predictions.json").write_text("{}")
    assert keys(tmp_path / "scans") == ["a"]


def test_masks_beside_images_are_left_out(image, tmp_path):
    for name in ("a (1)", "a (1)_mask", "a (1)_mask_1", "b_mask", "scan", "scan_1", "scan_2"):
        image(f"scans/{name}.png")
    records, remarks = find_images([tmp_path / "scans"], None, Problems(skip=False), masks_needed=False)
    assert {record.key for record in records} == {"a (1)", "b_mask", "scan", "scan_1", "scan_2"}
    assert remarks == ["2 files are masks of images beside them, and were left out"]


def test_names_that_are_alike(image, tmp_path):
    image("scans/a.png")
    image("scans/a.jpg")
    image("scans/b.png")
    image("other/b.png")
    assert sorted(keys(tmp_path / "scans")) == ["a.jpg", "a.png", "b"]
    with pytest.raises(DataError, match=r"other/b.png: has the same name as .*scans/b.png"):
        keys(tmp_path / "scans", tmp_path / "other")


def test_frames(image, tmp_path):
    path = Path(get_testdata_file("SC_rgb_rle_2frame.dcm", download=False))
    records, _ = find_images([path], None, Problems(skip=False), masks_needed=False)
    assert [(r.key, r.frame, r.image) for r in records] == [
        (f"SC_rgb_rle_2frame_frame{i + 1}", i, path) for i in (0, 1)
    ]


def test_pages(tmp_path):
    first, second = (Image.fromarray(np.full((40, 40), value, np.uint8)) for value in (9, 99))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    first.save(tmp_path / "b.tif")
    records, _ = find_images([tmp_path], None, Problems(skip=False), masks_needed=False)
    assert [(r.key, r.frame) for r in records] == [("a_frame1", 0), ("a_frame2", 1), ("b", None)]
    assert [read_image(r.image, r.frame).max() for r in records] == [9, 99, 9]


@pytest.mark.parametrize("count", [2_147_483_647, -3])
def test_more_frames_than_there_are_bytes(tmp_path, count):
    file = pydicom.dcmread(get_testdata_file("CT_small.dcm", download=False))
    file.NumberOfFrames = count
    file.save_as(tmp_path / "a.dcm")
    with pytest.raises(DataError, match=rf"a.dcm: NumberOfFrames: expected .*, got '?{count}"):
        keys(tmp_path)
    problems = Problems(skip=True)
    assert find_images([tmp_path], None, problems, masks_needed=False)[0] == []
    assert len(problems.found) == 1


def test_dicom_without_suffix(tmp_path):
    (tmp_path / "IM0001").write_bytes(Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes())
    (tmp_path / "README").write_text("x")
    assert keys(tmp_path) == ["IM0001"]


def test_masks_are_matched_by_name(image, tmp_path):
    for name in ("scans/a.png", "scans/b/c.png", "masks/a.png", "masks/b/c_mask.png", "masks/b/c_mask_1.png"):
        image(name)
    records, _ = find_images([tmp_path / "scans"], tmp_path / "masks", Problems(skip=False), masks_needed=True)
    found = {r.key: [path.name for path in r.masks] for r in records}
    assert found == {"a": ["a.png"], "b/c": ["c_mask.png", "c_mask_1.png"]}
    assert all(record.segmented for record in records)


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("L_CC", "L-CC"),
        ("lmlo", "L-MLO"),
        ("D1-0001_R-MLO_2", "R-MLO"),
        ("right cc", "R-CC"),
        ("CC_L", "L-CC"),
        ("mlo-right", "R-MLO"),
        ("normal_cc", None),
        ("L", None),
        ("breast", None),
    ],
)
def test_views_by_name(tmp_path, name, view):
    (tmp_path / f"{name}.png").write_bytes(b"x" * 200)
    assert view_of(tmp_path / f"{name}.png") == view


def test_exams(image, tmp_path):
    for name in ("one/L_CC.png", "one/R_CC.png", "two/deep/L_MLO.png", "empty/notes.txt"):
        if name.endswith("png"):
            image(f"exams/{name}")
    (tmp_path / "exams/empty").mkdir()
    exams, remarks = find_exams([tmp_path / "exams"], Problems(skip=False))
    assert [exam.key for exam in exams] == ["one", "two"]
    assert [[p and p.name for p in exam.views] for exam in exams] == [
        ["L_CC.png", None, "R_CC.png", None],
        [None, "L_MLO.png", None, None],
    ]
    assert remarks == ["one: there is no view L-MLO, R-MLO", "two: there is no view L-CC, R-CC, R-MLO"]
    assert [exam.key for exam in find_exams([tmp_path / "exams/one"], Problems(skip=False))[0]] == ["one"]


def test_exams_that_cannot_be_used(image, tmp_path):
    image("exams/one/L_CC.png")
    image("exams/two/L_CC.png")
    image("exams/two/left_cc.jpg")
    image("exams/three/scan.png")
    with pytest.raises(DataError, match=r"three/scan.png: neither tags nor name say which view it is"):
        find_exams([tmp_path / "exams"], Problems(skip=False))
    problems = Problems(skip=True)
    exams, _ = find_exams([tmp_path / "exams"], problems)
    assert [exam.key for exam in exams] == ["one"]
    assert any("is L-CC a second time, after" in words for words in problems.found)
    with pytest.raises(DataError, match="expected a folder with the views of an exam, found a file"):
        find_exams([tmp_path / "exams/one/L_CC.png"], problems)
    (tmp_path / "none").mkdir()
    (tmp_path / "none/a.txt").write_text("x")
    with pytest.raises(DataError, match="there is not a single image in it"):
        find_exams([tmp_path / "none"], problems)
    with pytest.raises(DataError, match="has the same name as"):
        find_exams([tmp_path / "exams/one", tmp_path / "exams/one"], problems)
