"""What is found in files and folders: names, frames, masks, views, and reasons against files."""

import os
import unicodedata
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


# --- hostile names and files ------------------------------------------------------------------------------------------


def put(kind: str, path: Path) -> str:
    """Writes something that is not an image, and returns the expected reason."""
    if kind == "pipe":
        os.mkfifo(path)
        return "found a device or a pipe"
    path.symlink_to({"dangling": "nowhere", "round": path.name, "device": "/dev/zero"}[kind])
    words = {"dangling": "is a link to nowhere, which is not there", "round": "is a link that leads to itself"}
    return words.get(kind, "found a device or a pipe")


@pytest.mark.parametrize("kind", ["pipe", "dangling", "round", "device"])
@pytest.mark.parametrize("name", ["b.png", "b.dcm", "b.tiff", "IM0001"])
def test_what_is_no_file_is_a_problem(image, tmp_path, kind, name):
    image("scans/a.png")
    words = put(kind, tmp_path / "scans" / name)
    for inputs in ([tmp_path / "scans"], [tmp_path / "scans" / name]):
        with pytest.raises(DataError, match=words):
            keys(*inputs)
    problems = Problems(skip=True)
    records, _ = find_images([tmp_path / "scans"], None, problems, masks_needed=False)
    assert [record.key for record in records] == ["a"]
    assert len(problems.found) == 1


@pytest.mark.parametrize("kind", ["pipe", "dangling", "round", "device"])
def test_other_things_that_are_no_files_are_left_alone(image, tmp_path, kind):
    image("scans/a.png")
    put(kind, tmp_path / "scans/notes.txt")
    assert keys(tmp_path / "scans") == ["a"]


def test_a_file_that_may_not_be_read_is_a_problem(image, tmp_path, monkeypatch):
    image("scans/a.png")
    image("scans/b.png")
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "b.png")
    with pytest.raises(DataError, match=r"b.png: cannot be read \(Permission denied\)"):
        keys(tmp_path / "scans")
    assert keys(tmp_path / "scans", skip=True) == ["a"]


def test_each_image_is_found_once_whatever_links_there_are(image, tmp_path):
    image("scans/a.png")
    image("scans/deep/b.png")
    image("elsewhere/c.png")
    for name, target in {"x": ".", "deep/y": "..", "deep/z": "../..", "again": "deep", "more": "../elsewhere"}.items():
        (tmp_path / "scans" / name).symlink_to(target)
    assert keys(tmp_path / "scans") == ["a", "deep/b", "more/c"]


def test_companions_are_not_found(image, tmp_path):
    image("scans/a.png")
    for name in ("._a.png", "._a.dcm", ".DS_Store", "__MACOSX/._a.png", "__MACOSX/a.dcm"):
        (tmp_path / "scans" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "scans" / name).write_bytes(b"Mac OS X        ")
    assert keys(tmp_path / "scans") == ["a"]


def test_bytes_that_are_no_text(image, tmp_path):
    image("scans/a.png")
    image("scans/b.png").rename(tmp_path / "scans" / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(DataError, match=r"caf\\xe9.png: its name is not text in UTF-8: rename it"):
        keys(tmp_path / "scans")
    problems = Problems(skip=True)
    assert [r.key for r in find_images([tmp_path / "scans"], None, problems, masks_needed=False)[0]] == ["a"]
    "".join(problems.found).encode()


def test_names_have_one_normal_form(image, tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "f\u00fcnf") for form in ("NFC", "NFD"))
    image(f"scans/{decomposed}.png")
    image(f"scans/{decomposed}_mask.png")
    image(f"masks/{composed}.png")
    records, _ = find_images([tmp_path / "scans"], tmp_path / "masks", Problems(skip=False), masks_needed=True)
    assert [(record.key, len(record.masks)) for record in records] == [(composed, 1)]
    image(f"scans/{composed}.png")
    with pytest.raises(DataError, match="has the same name as"):
        keys(tmp_path / "scans")


@pytest.mark.parametrize(
    ("name", "fits"), [("x" * 251 + ".png", True), ("x" * 250 + ".tiff", True), ("x" * 252, False)]
)
def test_names_that_leave_no_room_for_those_of_masks(image, tmp_path, name, fits):
    path = tmp_path / "scans" / name
    path.parent.mkdir()
    if path.suffix:
        image(f"scans/a{path.suffix}").rename(path)
        assert keys(tmp_path / "scans") == [path.stem]
        return
    path.write_bytes(Path(get_testdata_file("CT_small.dcm", download=False)).read_bytes())
    with pytest.raises(DataError, match=r"its name is too long: that of its mask, x{20}...x{16}\.png, would have more"):
        keys(tmp_path / "scans")
    assert not fits


def test_twins_and_frames_make_names_longer(image, tmp_path):
    image("scans/a.png").rename(tmp_path / "scans" / ("x" * 251 + ".png"))
    image("scans/a.jpg").rename(tmp_path / "scans" / ("x" * 251 + ".jpg"))
    assert keys(tmp_path / "scans", skip=True) == []
    film = Path(get_testdata_file("SC_rgb_rle_2frame.dcm", download=False)).read_bytes()
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / ("x" * 244 + ".dcm")).write_bytes(film)
    assert len(keys(tmp_path / "films")) == 2
    (tmp_path / "films" / ("x" * 251 + ".dcm")).write_bytes(film)
    with pytest.raises(DataError, match="its name is too long"):
        keys(tmp_path / "films")


def test_twin_masks_are_a_problem(image, tmp_path):
    image("scans/a.png")
    image("scans/b.png")
    image("masks/a.png")
    image("masks/a.jpg")
    image("masks/c.png")
    with pytest.raises(DataError, match=r"a.png: has the same name as .*a.jpg: which is the mask"):
        find_images([tmp_path / "scans"], tmp_path / "masks", Problems(skip=False), masks_needed=False)
    records, remarks = find_images([tmp_path / "scans"], tmp_path / "masks", Problems(skip=True), masks_needed=False)
    assert [record.key for record in records] == ["b"]
    assert remarks == [f"{tmp_path}/masks/c.png: is the mask of no image"]


def test_masks_of_other_names_are_told_where_they_are_needed(image, tmp_path):
    image("scans/a.png")
    image("masks/aa.png")
    with pytest.raises(DataError, match=r"there is no mask a.png of it in .*; .*/masks/aa.png belongs to no image"):
        find_images([tmp_path / "scans"], tmp_path / "masks", Problems(skip=False), masks_needed=True)


def test_exams_with_links_and_pipes(image, tmp_path):
    image("exams/one/L_CC.png")
    image("exams/two/L_CC.png")
    (tmp_path / "exams/one/up").symlink_to("..")
    (tmp_path / "exams/self").symlink_to(".")
    assert [exam.key for exam in find_exams([tmp_path / "exams"], Problems(skip=False))[0]] == ["one", "two"]
    os.mkfifo(tmp_path / "exams/two/R_CC.dcm")
    with pytest.raises(DataError, match=r"R_CC.dcm: expected a file, found a device or a pipe"):
        find_exams([tmp_path / "exams"], Problems(skip=False))
    problems = Problems(skip=True)
    assert len(find_exams([tmp_path / "exams"], problems)[0]) == 2
    assert len(problems.found) == 1
    (tmp_path / "exams/two").rename(tmp_path / "exams" / os.fsdecode(b"caf\xe9"))
    assert [exam.key for exam in find_exams([tmp_path / "exams"], problems)[0]] == ["one"]


# --- exams ------------------------------------------------------------------------------------------------------------


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
    assert any("is a second L-CC, after" in words for words in problems.found)
    with pytest.raises(DataError, match="expected a folder with the views of an exam, found a file"):
        find_exams([tmp_path / "exams/one/L_CC.png"], problems)
    (tmp_path / "none").mkdir()
    (tmp_path / "none/a.txt").write_text("x")
    with pytest.raises(DataError, match="it contains no usable image"):
        find_exams([tmp_path / "none"], problems)
    with pytest.raises(DataError, match="has the same name as"):
        find_exams([tmp_path / "exams/one", tmp_path / "exams/one"], problems)
