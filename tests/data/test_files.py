"""Tables and names are read in one way; files and folders are written whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from mtlkit.data import DataError
from mtlkit.data.files import folder_written_whole, natural, read_table, write_json, written_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
