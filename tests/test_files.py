"""Files are written completely or not at all."""

import csv
import errno
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlkit._files import check_new, csv_text, csv_value, json_text, write_json, written_whole
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


@pytest.mark.parametrize("path", ["/dev/null", "/dev/full"])
def test_devices_are_not_replaced(path):
    with pytest.raises(DataError, match=f"^{path}: expected a file, found a device or a pipe$"):
        check_new(path, force=True)


def test_what_cannot_be_written_is_told_before_the_work(tmp_path):
    check_new(tmp_path / "deep/a.json")
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"file/a.json: cannot be written \(Not a directory\)$"):
        check_new(tmp_path / "file/a.json")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_told_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match=r"a.json: cannot be written \(Permission denied\)$"):
        check_new(tmp_path / "deep/a.json")


@pytest.mark.parametrize("length", [250, 255])
def test_long_names_need_no_room_for_drafts(tmp_path, length):
    write_json(tmp_path / ("x" * length), [1])
    assert names(tmp_path) == ["x" * length]
    for check in (check_new, lambda path: write_json(path, [1])):
        with pytest.raises(DataError, match=r"y: cannot be written \(File name too long\)$"):
            check(tmp_path / ("y" * 256))


# --- JSON and CSV -----------------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(exclude_categories=("Cs",)))
BYTES = st.binary(max_size=8).map(os.fsdecode)


@given(st.dictionaries(NAMES | BYTES, NAMES | BYTES))
def test_every_name_comes_back_from_json(values):
    assert json.loads(json_text(values).encode()) == values


def read(text: str) -> list[list[str]]:
    return [[csv_value(cell) for cell in row] for row in csv.reader(io.StringIO(text, newline=""))]


@given(st.lists(NAMES | st.text("'=+-@\t\r\n\";,x"), min_size=2, max_size=2, unique=True), NAMES)
def test_every_name_comes_back_from_csv(heads, name):
    text = csv_text([{heads[0]: name, heads[1]: "x"}])
    assert text.encode()
    assert read(text) == [heads, [name, "x"]]


FORMULAS = [
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "\uff1d1",
    "'=1",
    "-",
    "--1",
    "+a",
]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_cell_is_a_formula(name):
    ((head, _), (cell, _)) = csv.reader(io.StringIO(csv_text([{name: name, "b": 1}]), newline=""))
    assert head == cell == f"'{name}"
    assert csv_value(cell) == name


@pytest.mark.parametrize(
    "cell", ["-1", "+4.5e-3", "-.5", "nan", "-inf", "a=1", "'90s", "benign", "", " =1", "1-2", -1.5, True]
)
def test_numbers_and_plain_text_stay_as_they_are(cell):
    assert csv_text([{"a": cell, "b": "x"}]) == f"a,b\n{cell},x\n"
    assert csv_value(str(cell)) == str(cell)


def test_missing_cells_are_empty():
    assert csv_text([{"a": 1, "b": None}, {"c": 2.5}]) == "a,b,c\n1,,\n,,2.5\n"


def test_names_that_are_not_utf8_can_be_written():
    assert csv_text([{"a": os.fsdecode(b"=\xe9\xff"), "b": "\ud800"}]) == "a,b\n'=\\xe9\\xff,\\ud800\n"
