"""Plots of a comparison: epochs as logged, images from hard to easy, masks of any size."""

import io
import math

import numpy as np
from PIL import Image

from mtlkit.evaluation import Predictions
from mtlkit.evaluation.comparison_plots import _resized, draw_curves, draw_gates, read_epochs, spread_rows


def test_epochs_of_both_stages_follow_one_another(tmp_path):
    for stage, text in ((1, "epoch,val/loss,val/iou\n0,2,0.5\n1,1,\n"), (2, "epoch,val/loss\n0,0.5\n1,broken\n")):
        (tmp_path / f"stage{stage}").mkdir()
        (tmp_path / f"stage{stage}/metrics.csv").write_text(text)
    columns = read_epochs(tmp_path)
    np.testing.assert_equal(columns["val/loss"], [2, 1, 0.5, math.nan])
    np.testing.assert_equal(columns["val/iou"], [0.5, math.nan, math.nan, math.nan])
    assert read_epochs(tmp_path / "none") == {}
    (tmp_path / "stage1/metrics.csv").write_bytes(b"epoch,val/loss\n0,\xff\n")
    np.testing.assert_equal(read_epochs(tmp_path)["val/loss"], [0.5, math.nan])


def test_images_are_spread_from_the_hardest_to_the_easiest():
    scores = {"iou": np.array([0.9, np.nan, 0.1, 0.5, 0.7])}
    found = {name: Predictions(None, (), (), {}, {}, scores) for name in "ab"}
    assert spread_rows(found, 3) == [2, 4, 0]
    assert spread_rows(found, 9) == [2, 3, 4, 0]


def test_masks_of_another_size():
    mask = np.array([[True, False], [False, True]])
    assert np.array_equal(_resized(mask, 4), np.kron(mask, np.ones((2, 2), bool)))
    assert np.array_equal(_resized(np.kron(mask, np.ones((2, 2), bool)), 2), mask)


def test_curves_and_gates_of_runs_that_logged_different_things():
    epochs = {
        "a": {
            "train/loss": [2.0, 1.0],
            "val/loss": [2.5, 1.5],
            "val/accuracy": [0.5, 0.75],
            "val/gate_image": [0.3, 0.4],
        },
        "_b $x$": {"val/loss": [1.0], "train/gate_tumor": [0.2], "val/gate_tumor": [0.3]},
    }
    for png in (draw_curves(epochs), draw_gates(epochs)):
        with Image.open(io.BytesIO(png)) as image:
            assert min(image.size) > 200
