"""The results of a table: cells next to published values, the best of a column, and tests over the seeds."""

import math
from dataclasses import replace

import pytest
from scipy import stats

from mtlkit.models import Costs
from mtlkit.training import Ablation, AblationRow, load_config
from mtlkit.training.ablation_table import Trained, paired_tests, show


def test_published_values_stand_in_brackets():
    rows = [
        AblationRow("a", load_config("demo"), {"iou": (67.5, 1.25), "parameters": (1.5, None)}),
        AblationRow("b", load_config("demo")),
    ]
    pair = {"mean": 0.5, "sd": math.nan}
    costs = {name: Costs(1_234_567, 1_000_000, 2.5e9) for name in "ab"}
    table = Ablation("x", tuple(rows), ("iou", "parameters", "flops"))
    headings, cells = show(table, {"a": {"test/iou": pair}, "b": {}}, costs)
    assert headings == ["", "iou", "parameters, M", "FLOPs, G"]
    assert cells == [["a", "0.5000 (0.6750 ± 0.0125)", "1.235 (1.500)", "2.500"], ["b", "", "1.235", "2.500"]]


def test_paired_tests_are_those_of_scipy_adjusted_by_holm():
    rows = tuple(AblationRow(name, load_config("demo")) for name in "abc")
    table = Ablation("x", rows, ("iou",), reference="a")
    values = {"a": [0.5, 0.6, 0.7, 0.65], "b": [0.52, 0.65, 0.74, 0.67], "c": [0.4, 0.7, 0.6, 0.7]}
    trained = {name: Trained({"test/iou": {}}, [{"test/iou": v} for v in column]) for name, column in values.items()}
    p = {name: stats.ttest_rel(values[name], values["a"]).pvalue for name in "bc"}
    low, high = sorted(p, key=p.get)
    found = paired_tests(table, trained)
    assert found[low]["iou"] == pytest.approx(2 * p[low])
    assert found[high]["iou"] == pytest.approx(max(2 * p[low], p[high]))
    assert paired_tests(table, {name: replace(row, runs=row.runs[:2]) for name, row in trained.items()}) == {}


def test_the_best_of_a_column_is_the_lowest_loss_and_the_highest_score():
    rows = tuple(AblationRow(name, load_config("demo")) for name in ("a", "b"))
    figures = ("loss", "classification", "calibration_error", "iou", "images", "gate_seg_level1")
    found = {
        name: {f"test/{figure}": {"mean": value, "sd": math.nan} for figure in figures}
        for name, value in (("a", 0.25), ("b", 0.5))
    }
    headings, cells = show(Ablation("x", rows, figures), found)
    assert headings == ["", *figures]
    assert cells == [
        ["a", *["**0.2500**"] * 3, "0.2500", "0", "0.2500"],
        ["b", *["0.5000"] * 3, "**0.5000**", "0", "0.5000"],
    ]


def test_figures_that_only_later_rows_have_are_shown():
    rows = tuple(AblationRow(name, load_config("demo")) for name in ("a", "b"))
    pair = {"mean": 0.5, "sd": math.nan}
    found = {"a": {"val/label_auc": pair}, "b": {"val/label_auc": pair, "val/birads_auc": pair}}
    assert show(Ablation("x", rows, ()), found)[0] == ["", "label_auc", "birads_auc"]
