"""Journals: each line is complete or missing."""

import pytest

from mtlkit._journal import Journal
from mtlkit.errors import DataError


def test_lines_stay_whole(tmp_path):
    path = tmp_path / "a"
    Journal(path, path).append({"name": "\udcff\n", "value": 0.1})
    journal = Journal(path, path)
    assert journal.lines == [{"name": "\udcff\n", "value": 0.1}]
    path.write_bytes(path.read_bytes() + b'{"torn": ')
    journal = Journal(path, path)
    assert len(journal.lines) == 1
    journal.append(2)
    assert Journal(path, path).lines == [{"name": "\udcff\n", "value": 0.1}, 2]
    journal.remove()
    assert Journal(path, path).lines == []
    path.write_bytes(b"torn")
    Journal(path, path).append(3)
    assert path.read_bytes() == b"3\n"


def test_damage_is_named(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1\n{\n3\n")
    with pytest.raises(DataError, match="a: line 2 is damaged"):
        Journal(path, path)
    with pytest.raises(DataError, match=r"b: cannot be read \(Is a directory\)"):
        Journal(tmp_path, tmp_path / "b")
    with pytest.raises(DataError, match=r"b: cannot be written \(No such file or directory\)"):
        Journal(tmp_path / "none/a", tmp_path / "b").append(1)
