"""Tables and names are read in one way."""

import zipfile
from pathlib import Path

import openpyxl
import pytest

from mtlkit.data import DataError
from mtlkit.data.files import natural, read_table


def test_natural_order():
    names = ["b10", "b2", "a", "b1", "b", "B3", "b02c"]
    assert sorted(names, key=lambda name: natural(Path(name))) == ["B3", "a", "b", "b1", "b2", "b02c", "b10"]


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
