"""What a catalogue reports about its records, and what it omits."""

from pathlib import Path

import pytest

from mtlkit.data import Catalogue, DataError, Exam, Finding, Record


def record(key: str, label: int) -> Record:
    return Record(key, Path(f"{key}.png"), label, (Path(f"{key}_mask.png"),), key)


@pytest.fixture
def catalogue() -> Catalogue:
    records = record("benign/1", 0), record("malignant/1", 1), record("normal/1", -1)
    return Catalogue("folder", Path("data"), ("benign", "malignant"), records)


def test_counts_name_what_is_not_known(catalogue):
    assert catalogue.counts() == {"benign": 1, "malignant": 1, "not known": 1}
    assert len(catalogue) == 3
    assert not catalogue.mammography


def test_a_subset_has_its_own_order(catalogue):
    keys = ["malignant/1", "benign/1"]
    assert [record.key for record in catalogue.subset(keys).records] == keys
    with pytest.raises(DataError, match=r"data: there is no record 'b' \(and 1 more\)"):
        catalogue.subset(["b", "benign/1", "c"])


def test_errors_take_records_out_and_warnings_do_not(catalogue):
    found = [
        Finding("error", "unreadable", Path("x"), "cannot be read", "benign/1"),
        Finding("warning", "blank image", Path("y"), "is blank", "malignant/1"),
    ]
    left = catalogue.without(found)
    assert [record.key for record in left.records] == ["malignant/1", "normal/1"]
    assert left.findings == tuple(found)


def test_files_and_strata():
    assert record("normal/1", 2).without_lesion
    assert not record("benign/1", 0).without_lesion
    assert record("a", 0).files == (Path("a.png"), Path("a_mask.png"))
    exam = Exam("p", (Path("1.dcm"), None, Path("2.dcm"), None), (0, 1), (-1, -1), "p")
    assert (exam.stratum, exam.files) == (1, (Path("1.dcm"), Path("2.dcm")))
    assert Catalogue("cmmd", Path("d"), ("normal", "malignant"), (exam,)).mammography
