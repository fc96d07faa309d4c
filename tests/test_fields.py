"""Typed values of JSON files: correct, or a DataError that names file and field."""

import math
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.values import JSON_VALUES, refusal
from mtlkit._fields import Fields, read_fields
from mtlkit.errors import DataError

PATH = Path("a.json")
READERS = ("text", "texts", "integer", "integers", "number", "fields", "list_of_fields")


def test_values_of_their_types():
    values = {"t": "x", "ts": ["x", "y"], "i": 3, "is": [1, 2], "n": 1, "f": {"a": 1}, "l": [{"a": 2}], "none": None}
    found = Fields(PATH, values)
    assert (found.text("t"), found.texts("ts"), found.integer("i"), found.integers("is")) == (
        "x",
        ("x", "y"),
        3,
        (1, 2),
    )
    assert found.number("n") == 1
    assert type(found.number("n")) is float
    assert found.fields("f").integer("a") == 1
    assert found.fields("f", {}).integer("a") == 1
    assert found.fields("none", {}).values == {}
    assert found.list_of_fields("l")[0].integer("a") == 2
    assert found.integer("none", None) is None
    assert math.isnan(found.number("missing", math.nan))


@pytest.mark.parametrize(
    ("reader", "value", "words"),
    [
        ("text", 3, "a: expected text, got 3"),
        ("text", "x\0", r"a: expected text, got 'x\\x00'"),
        ("texts", "abc", "a: expected a list of text, got 'abc'"),
        ("texts", ["x", None], "a: expected a list of text, got"),
        ("integer", True, "a: expected an integer, got True"),
        ("integer", 1.5, "a: expected an integer, got 1.5"),
        ("integer", 2**63, "a: expected an integer, got"),
        ("integers", [1, "2"], "a: expected a list of integers, got"),
        ("number", math.nan, "a: expected a number, got nan"),
        ("number", math.inf, "a: expected a number, got inf"),
        ("number", "1", "a: expected a number, got '1'"),
        ("fields", [], r"a: expected names and values, got \[\]"),
        ("list_of_fields", {}, "a: expected a list, got {}"),
        ("list_of_fields", [{}, 3], r"a\[1\]: expected names and values, got 3"),
    ],
)
def test_other_values_are_named(reader, value, words):
    with pytest.raises(DataError, match=rf"^a.json: is odd \({words}"):
        getattr(Fields(PATH, {"a": value}, "is odd"), reader)("a")
    with pytest.raises(DataError, match=r"^a.json: is odd \(b.a is missing\)$"):
        getattr(Fields(PATH, {}, "is odd", "b."), reader)("a")


@given(JSON_VALUES)
@settings(max_examples=60, deadline=None)
def test_whatever_the_values(value):
    words = [refusal(lambda: Fields(PATH, value), DataError)]
    if isinstance(value, dict):
        found = Fields(PATH, value)
        words += [refusal(partial(getattr(found, reader), name), DataError) for name in value for reader in READERS]
    assert all(line == "" or (line.startswith("a.json: ") and len(line) < 600) for line in words)


@given(st.binary(max_size=40))
@settings(max_examples=30, deadline=None)
def test_whatever_the_bytes(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_bytes(content)
    assert refusal(lambda: read_fields(path), DataError).startswith(str(path))
