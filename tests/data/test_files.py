"""Tables and names are read in one way."""

from pathlib import Path

import pytest

from mtlkit.data.files import natural, read_table


def test_natural_order():
    names = ["b10", "b2", "a", "b1", "b", "B3", "b02c"]
    assert sorted(names, key=lambda name: natural(Path(name))) == ["B3", "a", "b", "b1", "b2", "b02c", "b10"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_tables_of_text(tmp_path, delimiter):
    (tmp_path / "a.csv").write_text(f"\ufeffid{delimiter}name\n1{delimiter} x \n", encoding="utf-8")
    assert read_table(tmp_path / "a.csv") == [["id", "name"], ["1", "x"]]
