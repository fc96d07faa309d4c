"""Values in messages are short for any input, and formatting them is fast."""

import time
import unicodedata

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mtlkit._check import check_choice
from mtlkit._text import composed, parse_json, parse_yaml, printable, shown


def test_short_values_are_shown_whole():
    for value in ("benign", 3, 2.5, None, True, [1, 2], {"a": (1, "b")}, b"1A"):
        assert shown(value) == repr(value)


def anchors(levels: int = 40) -> object:
    """A YAML file of a few hundred bytes that expands to ten times ten times ten ... values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return yaml.safe_load("\n".join(lines))


DEEP: list = []
for _ in range(100_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        b"x" * 10**6,
        [0] * 10**6,
        dict.fromkeys(range(10**5)),
        {("y" * 1000, i) for i in range(1000)},
        [["z" * 500] * 500] * 500,
        anchors(),
        10**5000,
        -(2**100_000),
        DEEP,
    ],
    ids=["text", "bytes", "list", "dict", "set", "nested", "anchors", "integer", "negative", "deep"],
)
def test_large_values_are_short_and_quick(value):
    start = time.perf_counter()
    words = shown(value)
    assert time.perf_counter() - start < 0.5
    assert len(words) <= 200
    assert "\n" not in words
    with pytest.raises(ValueError, match="name: expected one of 1, 2, got ") as error:
        check_choice("name", value, (1, 2))
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[", "1" * 5000 + "x", ""])
def test_json_that_is_none_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"\w") as error:
        parse_json(text)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "text",
    ["[" * 10_000, "{a: " * 10_000, "- " * 10_000, "[", "a: 2020-13-45", "1" * 5000, "? [a]\n: 1", "!!python/x 1"],
)
def test_yaml_that_is_none_is_a_yaml_error(text):
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


def test_values_are_read():
    assert parse_json('{"a": [1, null]}') == parse_yaml("a: [1, null]") == {"a": [1, None]}


# --- text for a terminal ----------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_controls_what_shows_it(text):
    words = printable(text)
    words.encode()
    assert all(unicodedata.category(one) not in ("Cc", "Cs", "Zl", "Zp") for one in words)
    assert all(one in "\u200c\u200d" for one in words if unicodedata.category(one) == "Cf")
    assert printable(words) == words


@pytest.mark.parametrize(
    "text", ["M\u00fcller 2.png", "\u4e73\u817a", "a\\b", "\u200c\u200d", "1\u00a02", "\U0001f642", ""]
)
def test_ordinary_names_stay_as_they_are(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\r\nb\tc\x7f\x9b", r"a\r\nb\tc\x7f\x9b"),
        ("\u202egnp.a\u2066", r"\u202egnp.a\u2066"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), r"caf\xe9"),
        ("\ud800", r"\ud800"),
        ("\u2028", r"\u2028"),
    ],
)
def test_what_controls_is_escaped(text, words):
    assert printable(text) == words


def test_what_is_to_be_kept():
    assert printable("a\n\x1bb", keep="\n") == "a\n\\x1bb"


@given(st.text())
def test_a_name_has_one_normal_form(text):
    assert composed(unicodedata.normalize("NFD", text)) == composed(text) == composed(composed(text))
