"""The check of a data set classifies errors by their kind, regardless of the wording."""

from pathlib import Path

import pytest

from mtlkit.data import check_dataset
from mtlkit.errors import DataError, MismatchError, TooLargeError


def test_a_sound_data_set(busi):
    told = []
    report = check_dataset(busi, progress=lambda done, total: told.append((done, total)))
    assert report.ok
    assert told[-1] == (12, 12)
    assert report.to_dict()["records"] == 12


@pytest.mark.parametrize(
    ("error", "kind"),
    [(MismatchError, "wrong size"), (TooLargeError, "too large"), (DataError, "unreadable")],
)
def test_errors_are_sorted_by_their_kind(busi, monkeypatch, error, kind):
    def fail(*arguments, **options):
        raise error("some/file.png: these words say nothing of the kind")

    monkeypatch.setattr("mtlkit.data.validate.load_image", fail)
    report = check_dataset(busi)
    assert not report.ok
    assert {finding.kind for finding in report.findings if finding.level == "error"} == {kind}
    assert len(report.catalogue) == 0


def test_errors_come_first_then_the_frequent_kinds(busi, write):
    folder = busi / "Dataset_BUSI_with_GT"
    (folder / "benign" / "benign (1).png").write_bytes(b"")
    for i in (1, 2, 3):
        write(folder / "malignant" / f"malignant ({i})_mask.png", lesion=False)
    kinds = list(check_dataset(busi).by_kind())
    assert kinds[0] == ("error", "unreadable")
    assert [level for level, _ in kinds] == sorted(
        (level for level, _ in kinds), key=["error", "warning", "note"].index
    )


def test_the_limit_on_pixels_is_a_kind_of_its_own(busi):
    report = check_dataset(busi, max_pixels=100)
    assert {finding.kind for finding in report.findings if finding.level == "error"} == {"too large"}
    assert all(isinstance(finding.path, Path) for finding in report.findings)
