"""Metrics over repeated runs."""

import math

import pytest

from mtlkit.training.aggregate import digits_of, in_words, summarise


def test_mean_and_sample_deviation():
    found = summarise([{"iou": 0.5, "dice": 0.6}, {"iou": 0.7, "dice": 0.6}, {"iou": 0.9, "dice": 0.6}])
    assert found["iou"] == {"mean": pytest.approx(0.7), "sd": pytest.approx(0.2)}
    assert found["dice"] == {"mean": pytest.approx(0.6), "sd": pytest.approx(0, abs=1e-12)}


def test_a_single_run_has_no_deviation():
    found = summarise([{"iou": 0.5}])["iou"]
    assert found["mean"] == 0.5
    assert math.isnan(found["sd"])


@pytest.mark.parametrize("missing", [None, math.nan])
def test_what_a_run_lacks_has_neither(missing):
    found = summarise([{"iou": 0.5, "auc": missing}, {"iou": 0.5, "auc": 0.9}])
    assert math.isnan(found["auc"]["mean"])
    assert math.isnan(found["auc"]["sd"])
    assert found["iou"]["mean"] == 0.5


def test_words():
    assert in_words({"mean": 0.75, "sd": 0.125}, 2) == "0.75 ± 0.12"
    assert in_words({"mean": 0.75, "sd": None}) == "0.7500"
    assert in_words({"mean": None, "sd": None}) == "not defined"
    assert in_words({"mean": 12.0, "sd": math.nan}, digits_of("empty")) == "12"
