"""Files written whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from mtlkit._files import write_json, written_whole
from mtlkit.errors import DataError, ExistsError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_overwritten_without_force(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ExistsError, match=r"the file exists already$"):
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


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "a.json"
    link.symlink_to(tmp_path / "elsewhere/b.json")
    write_json(link, [1])
    write_json(link, [2], force=True)
    assert link.is_symlink()
    assert json.loads((tmp_path / "elsewhere/b.json").read_text()) == [2]
