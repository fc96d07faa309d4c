"""Folders are listed and tables are read in one way."""

import os
import socket
import zipfile
from pathlib import Path

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlkit._files import csv_text, why_unreadable
from mtlkit.data import DataError
from mtlkit.data.files import entries, files_below, natural, pictures, read_table, subfolders


def test_natural_order():
    names = ["b10", "b2", "a", "b1", "b", "B3", "b02c"]
    assert sorted(names, key=lambda name: natural(Path(name))) == ["B3", "a", "b", "b1", "b2", "b02c", "b10"]


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def below(root: Path, **options) -> list[str]:
    return [path.relative_to(root).as_posix() for path in files_below(root, **options)]


def test_companions_are_not_listed(tmp_path):
    make(tmp_path, "a.png", "._a.png", "._a.dcm", ".DS_Store", ".git/x.png", "__MACOSX/a.png", "b/.x.png", "b/c.dcm")
    assert [path.name for path in entries(tmp_path)] == ["a.png", "b"]
    assert [path.name for path in subfolders(tmp_path)] == ["b"]
    assert below(tmp_path) == ["a.png", "b/c.dcm"]


def test_the_order_does_not_depend_on_the_disk(tmp_path):
    make(tmp_path, "10.png", "2.png", "02.png", "b/1.png", "a/1.png", "a/b/1.png")
    assert below(tmp_path) == ["02.png", "2.png", "10.png", "a/1.png", "a/b/1.png", "b/1.png"]
    assert [path.name for path in pictures(tmp_path)] == ["02.png", "2.png", "10.png"]
    assert pictures(tmp_path / "none") == subfolders(tmp_path / "none") == []


def test_each_folder_is_read_once_whatever_links_there_are(tmp_path):
    for name in "abcdefgh":
        make(tmp_path, f"{name}/{name}.png")
    for name in "abcdefgh":
        for other in "abcdefgh":
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    (tmp_path / "self").symlink_to(tmp_path)
    (tmp_path / "up").symlink_to("..")
    (tmp_path / "round").symlink_to("round")
    assert below(tmp_path) == ["round", *(f"{name}/{name}.png" for name in "abcdefgh")]
    assert "self" not in [path.name for path in entries(tmp_path)]


def test_links_to_other_folders_are_followed(tmp_path):
    make(tmp_path, "real/1.png", "elsewhere/2.png", "elsewhere/deep/3.png")
    (tmp_path / "real/a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "real/b").symlink_to(tmp_path / "elsewhere/deep")
    assert below(tmp_path / "real") == ["1.png", "a/2.png", "a/deep/3.png"]
    assert below(tmp_path / "real", leave=lambda folder: folder.name == "deep") == ["1.png", "a/2.png", "b/3.png"]


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    make(tmp_path, "a/1.png", "b/2.png")
    listed = Path.iterdir

    def refuse(path: Path):
        if path.name == "a":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"a: the folder cannot be listed \(Permission denied\)"):
        below(tmp_path)
    told = []
    assert below(tmp_path, told=told.append) == ["b/2.png"]
    assert len(told) == 1


def test_why_there_is_nothing_to_be_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "device").symlink_to("/dev/zero")
    make(tmp_path, "file")
    (tmp_path / "link").symlink_to("file")
    monkeypatch.chdir(tmp_path)  # socket names must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        found = {
            name: why_unreadable(Path(name))
            for name in [*(path.name for path in Path().iterdir()), ".", "none", "file/x", "x" * 300]
        }
    assert found == {
        "pipe": "expected a file, found a device or a pipe",
        "socket": "expected a file, found a device or a pipe",
        "device": "expected a file, found a device or a pipe",
        "dangling": "is a link to nowhere, which is not there",
        "round": "is a link that leads to itself",
        "file": None,
        "link": None,
        ".": "expected a file, found a folder",
        "none": "there is no such file",
        "file/x": "there is no such file",
        "x" * 300: "cannot be read (File name too long)",
    }
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert why_unreadable(Path("file")) == "cannot be read (Permission denied)"


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_that_is_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(DataError, match="expected a file, found a device or a pipe"):
        read_table(tmp_path / "a.csv")


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(lambda cell: cell.strip() == cell))
def test_what_mtlkit_writes_is_read_back(tmp_path_factory, cell):
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_bytes(csv_text([{"image": cell, "group": "x"}]).encode())
    assert read_table(path) == [["image", "group"], [cell, "x"]]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_text(tmp_path, delimiter):
    (tmp_path / "a.csv").write_text(f"\ufeffid{delimiter}name\n1{delimiter} x \n", encoding="utf-8")
    assert read_table(tmp_path / "a.csv") == [["id", "name"], ["1", "x"]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_of_windows(tmp_path, encoding):
    (tmp_path / "a.csv").write_bytes("id;name\r\n1;Müller\r\n".encode(encoding))
    assert read_table(tmp_path / "a.csv") == [["id", "name"], ["1", "Müller"]]


@pytest.mark.parametrize("content", ["id;name\n1;Müller\n".encode("latin-1"), b"\xff\xfei\0d\0\n", b"id\n\x80"])
def test_tables_in_another_code(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(
        DataError, match=r"a.csv: expected text in UTF-8 or UTF-16, got other bytes in line \d; save it"
    ):
        read_table(tmp_path / "a.csv")


def test_a_workbook_that_unpacks_to_too_much(tmp_path):
    path, book = tmp_path / "a.xlsx", openpyxl.Workbook()
    book.active.append(["id", "name"])
    book.save(path)
    assert read_table(path) == [["id", "name"]]
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("xl/more.xml", "w") as part:
        for _ in range(300):
            part.write(bytes(2**20))
    assert path.stat().st_size < 500_000
    with pytest.raises(DataError, match=r"a.xlsx: expected at most 268,435,456 bytes of table, got 314,"):
        read_table(path)
