"""The report on several runs: names of metrics, and names shown as text, not as markup."""

import os

import pytest

from mtlkit.evaluation.report import COUNTS, figure_rows, write_summary
from mtlkit.models.card import FIGURES
from mtlkit.training.tasks import HEADS

SUMMARY = {
    "figures": {"iou": {"mean": 0.75, "sd": 0.01, "runs": {"seed-1": 0.74, "seed-2": 0.76}}},
    "counts": {"images": 50},
    "classes": {},
    "failure_detection": {},
    "gates": {},
}


def test_figures_have_words():
    assert figure_rows({"iou": 1, "auc": 2}) == [("IoU", 1), ("AUC", 2)]
    head = next(head for head in HEADS.values() if head.prefix)
    ((words, value),) = figure_rows({f"{head.prefix}accuracy": 3})
    assert words.endswith(": accuracy")
    assert value == 3
    with pytest.raises(KeyError):
        figure_rows({"unheard_of": 1})


def test_the_page_of_several_runs():
    about = {"title": "<script>alert(1)</script>", "subtitle": "two seeds", "footer": "for research", "data": "a & b"}
    page = write_summary(SUMMARY, about, ["remark <b>"], ["seed-1", "seed-2"])
    assert "mean ± standard deviation, 2 runs" in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert "a &amp; b" in page
    assert "remark &lt;b&gt;" in page
    assert FIGURES["iou"] in page
    assert COUNTS["images"] in page


def test_names_of_files_are_text_on_the_page():
    names = ["\x1b[31m", "\u202egnp", os.fsdecode(b"\xe9"), "javascript:alert(1)", '"><b>', "#1?"]
    about = {"title": names[0], "subtitle": names[1], "footer": names[2]}
    figures = {"iou": {"mean": 0.75, "sd": 0.01, "runs": dict.fromkeys(names, 0.5)}}
    page = write_summary(SUMMARY | {"figures": figures}, about, names, names)
    assert page.encode()
    assert "\x1b" not in page
    assert "\u202e" not in page
    for words in (r"\x1b[31m", r"\u202egnp", r"\xe9", "&#34;&gt;&lt;b&gt;"):
        assert words in page
    for link in ("%1B%5B31m", "%E2%80%AEgnp", "%E9", "javascript%3Aalert%281%29", "%22%3E%3Cb%3E", "%231%3F"):
        assert f'href="{link}/report.html"' in page
