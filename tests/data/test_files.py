"""Pictures of every kind are read alike; files and folders are written whole or not at all."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtlkit.data import DataError, read_image, read_mask
from mtlkit.data.files import folder_written_whole, natural, read_table, write_json, written_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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


def test_masks_are_merged_and_cut_above_127(tmp_path):
    for name, values in (("a", [0, 127, 128, 255]), ("b", [255, 0, 0, 0]), ("c", [0, 0, 1, 0])):
        Image.fromarray(np.array([values], np.uint8)).save(tmp_path / f"{name}.png")
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    assert read_mask(paths[:1], (1, 4)).tolist() == [[0, 0, 1, 1]]
    assert read_mask(paths[:2], (1, 4)).tolist() == [[1, 0, 1, 1]]
    assert read_mask(paths[2:], (1, 4)).tolist() == [[0, 0, 1, 0]]  # a mask of 0 and 1
    with pytest.raises(DataError, match=r"a.png: the mask has 4 x 1 pixels, its image 2 x 3"):
        read_mask(paths, (3, 2))


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


def test_natural_order():
    names = ["b10", "b2", "a", "b1", "b", "B3", "b02c"]
    assert sorted(names, key=lambda name: natural(Path(name))) == ["B3", "a", "b", "b1", "b2", "b02c", "b10"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_text(tmp_path, delimiter):
    (tmp_path / "a.csv").write_text(f"\ufeffid{delimiter}name\n1{delimiter} x \n", encoding="utf-8")
    assert read_table(tmp_path / "a.csv") == [["id", "name"], ["1", "x"]]


# --- writing ----------------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_without_force(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(DataError, match="the file exists already; --force overwrites it"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    write_json(path, {"a": 2}, force=True)
    assert json.loads(path.read_text()) == {"a": 2}
    with pytest.raises(DataError, match="expected a file, found a folder"):
        write_json(tmp_path, {}, force=True)


def interrupted(path: Path) -> None:
    with written_whole(path, force=True) as draft:
        draft.write_text("half")
        raise RuntimeError("stop")


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, object(), force=True)
    with pytest.raises(RuntimeError, match="stop"):
        interrupted(path)
    assert json.loads(path.read_text()) == [1]
    assert names(tmp_path) == ["a.json"]


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(DataError, match=r"a.json: cannot be written \(No space left on device\)$"):
        write_json(tmp_path / "a.json", [1])
    assert not names(tmp_path)


def too_much(path: Path) -> None:
    with folder_written_whole(path, "mark") as draft:
        (draft / "a").write_text("x")
        full_disk()


def test_a_folder_is_whole_or_not_there(tmp_path):
    path = tmp_path / "deep" / "out"
    with pytest.raises(DataError, match="No space left"):
        too_much(path)
    assert not names(path.parent)
    with folder_written_whole(path, "mark") as draft:
        (draft / "mark").write_text("1")
        assert not path.exists()
    assert names(path.parent) == ["out"]


def test_only_folders_of_our_own_are_overwritten(tmp_path):
    mine, other, empty = (tmp_path / name for name in ("mine", "other", "empty"))
    for folder in (mine, other, empty):
        folder.mkdir()
    (mine / "mark").write_text("old")
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="exists already; --force overwrites"), folder_written_whole(mine, "mark"):
        pass
    for path in (other, other / "thesis.txt"):
        words = "holds no mark, so that it is not overwritten even with --force"
        with pytest.raises(DataError, match=words), folder_written_whole(path, "mark", force=True):
            pass
    for path in (mine, empty):
        with folder_written_whole(path, "mark", force=True) as draft:
            (draft / "mark").write_text("new")
        assert (path / "mark").read_text() == "new"
    assert (other / "thesis.txt").read_text() == "precious"
    assert names(tmp_path) == ["empty", "mine", "other"]
