"""Images are found under the names that other programs write, and never under wrong ones."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlkit.data.names import Names, folded, is_text, key_of

PARTS = st.text(st.characters(categories=("L", "N", "Zs", "M"), include_characters="-_()."), min_size=1, max_size=6)
SOUND = PARTS.filter(lambda part: part.strip() == part and part.strip(".") == part and part != "images")
KEYS = st.builds("{}/{}".format, SOUND, SOUND)
WRITINGS = [
    lambda key: key,
    lambda key: key.replace("/", "\\"),
    lambda key: f"images/{key}",
    lambda key: f"images\\{key}.png".replace("/", "\\"),
    lambda key: f"C:\\data\\images\\{key}",
    lambda key: f"./{key}",
    lambda key: f"{key}.PNG",
    lambda key: f"{key}.dcm",
]


@given(st.lists(KEYS, min_size=1, max_size=4), st.sampled_from(WRITINGS), st.sampled_from(["NFC", "NFD"]))
def test_names_are_found_however_they_are_written(keys, write, form):
    names = Names(keys)
    for key in keys:
        found = names.find(unicodedata.normalize(form, write(key)))
        assert unicodedata.normalize("NFC", found) == unicodedata.normalize("NFC", key)


@given(st.lists(KEYS, max_size=4), KEYS)
def test_no_name_is_found_that_is_not_there(keys, other):
    found = Names(keys).find(other)
    assert found is None or (found in keys and folded(found) == folded(other))
    assert found is not None or folded(other) not in {folded(key) for key in keys} or len(keys) > 1


def test_another_case_and_other_spaces_are_taken_where_they_fit_one_name():
    names = Names(["cyst/Scan 1", "cyst/a", "cyst/A"])
    assert names.find("CYST/SCAN  1.jpg") == "cyst/Scan 1"
    assert names.find("cyst/A") == "cyst/A"
    assert names.find("Cyst/a") is None


def test_a_dot_in_a_name_begins_no_suffix():
    names = Names(["cyst/scan 1", "cyst/scan 1.5mm"])
    assert names.find("cyst/scan 1.5mm") == names.find("cyst/scan 1.5mm.png") == "cyst/scan 1.5mm"
    assert names.find("cyst/scan 1.7mm") is None


def test_the_first_of_several_goes_first_in_any_form():
    names = Names(["Scan_1", "scan"])
    assert names.find("scan_1", "scan") == "scan"
    assert Names(["Scan_1"]).find("scan_1", "scan") == "Scan_1"


def test_a_backslash_may_be_part_of_a_name():
    names = Names(["cyst/a\\b", "cyst/a/b"])
    assert names.find("cyst/a\\b.png") == "cyst/a\\b"
    assert names.find("cyst\\a\\b") == "cyst/a/b"


@pytest.mark.parametrize(("name", "text"), [(b"a", True), ("\u00e9".encode(), True), (b"caf\xe9", False)])
def test_bytes_that_are_no_text(name, text):
    assert is_text(os.fsdecode(name)) == is_text(Path(os.fsdecode(name))) == text


def test_keys_have_one_normal_form():
    assert key_of("Zu\u0308st", Path("x/e\u0301.png")) == "Z\u00fcst/\u00e9"
