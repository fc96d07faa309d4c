"""The gates over the epochs, from the tables of a run, and failures; test_runner.py tests the evaluation's output."""

from pathlib import Path

import numpy as np
import pytest

from mtlkit._probabilities import softmax
from mtlkit.data import Record
from mtlkit.evaluation import Predictions, judge
from mtlkit.evaluation.analysis import epoch_gates, failures
from mtlkit.training import Config, SavedRun
from mtlkit.training.calibration import Calibration


def test_gates_of_the_epochs(tmp_path):
    for number, rows in ((1, ["0,0.5,0.1", "1,0.25,0.2"]), (2, ["0,0.75,0.3"])):
        (tmp_path / f"stage{number}").mkdir()
        text = "\n".join(["epoch,val/gate_image,val/iou", *rows]) + "\n"
        (tmp_path / f"stage{number}/metrics.csv").write_text(text)
    assert epoch_gates(tmp_path) == [{"image": [0.5, 0.25]}, {"image": [0.75]}]
    assert epoch_gates(tmp_path, "train") == []


@pytest.mark.parametrize(
    "text", ["", "epoch,val/iou\n0,0.5\n", "epoch,val/gate_image\n0,x\n", "epoch,val/gate_image\n0\n"]
)
def test_tables_without_gates(tmp_path, text):
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1/metrics.csv").write_text(text)
    assert epoch_gates(tmp_path) == []


def test_a_mask_fails_below_one_half_and_not_at_it():
    iou = np.array([0.5, np.nextafter(0.5, 0), np.nextafter(0.5, 1), 0.0, np.nan])
    images = tuple(Record(f"{i}", Path(f"{i}.png"), 0, (), f"{i}") for i in range(5))
    shares = {"class": np.array([[0.5, 0.5], [0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.5, 0.5]])}
    found = failures(Predictions(None, images, (), {"class": np.array([0, 0, 0, -1, 1])}, shares, {"iou": iou}))
    failed, known = found["mask"]
    assert known.tolist() == [True] * 4 + [False]
    assert failed[known].tolist() == [False, True, False, True]
    failed, known = found["class"]
    assert known.tolist() == [True] * 3 + [False, True]
    assert failed[known].tolist() == [False, False, True, True]


def test_calibration_before_and_after_and_the_thresholds():
    logits = np.array([[0.0, 2.0], [0.0, -1.0], [0.0, 1.0], [0.0, -3.0]])
    labels, shares = np.array([1, 0, 0, -1]), softmax(logits, 2.0)
    calibration = {"class": Calibration(2.0, 9, {"youden": 0.6})}
    config = Config("views")
    run = SavedRun(Path(), config, None, ("benign", "malignant"), (), None, {}, Path(), {}, calibration)
    images = tuple(Record(name, Path(f"{name}.png"), 0, (), name) for name in "abcd")
    found = judge(Predictions(run, images, (), {"class": labels}, {"class": shares}), samples=0)["calibration"]["class"]
    for when, values in (("before", softmax(logits)), ("after", shares)):
        brier = ((values[:3] - np.eye(2)[labels[:3]]) ** 2).sum(1).mean()
        assert found[when]["brier"].value == pytest.approx(brier)
    assert found["temperature"] == 2.0
    row = found["thresholds"]["youden"]
    assert row["threshold"] == 0.6
    assert [row[name].value for name in ("sensitivity", "specificity", "precision")] == [1.0, 0.5, 0.5]
