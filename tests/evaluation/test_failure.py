"""Which scores should predict failure, and how risk and coverage are computed; test_runner.py tests their metrics."""

from pathlib import Path

import numpy as np
import pytest

from mtlkit.data import Record
from mtlkit.evaluation import Predictions
from mtlkit.evaluation.failure import failure_scores, failure_values, rank_failures, risk_coverage


def test_risk_and_coverage_by_hand():
    score, failed = np.array([0.9, 0.1, 0.3, 0.3]), np.array([True, False, True, False])
    coverage, risk = risk_coverage(score, failed)
    assert coverage.tolist() == [0.25, 0.75, 1]
    assert risk.tolist() == pytest.approx([0, 1 / 3, 1 / 2])


def test_signals_are_turned_to_where_failure_is_expected():
    records = tuple(Record(name, Path(f"{name}.png"), 0, (), name) for name in "ab")
    shares = {"class": np.array([[0.9, 0.1], [0.3, 0.7]])}
    predictions = Predictions(
        None,
        records,
        (),
        {"class": np.array([0, 0])},
        shares,
        {"iou": np.array([0.9, 0.2])},
        gates=np.array([[0.1, 0.2], [0.3, 0.4]]),
        gate_names=("seg_level2", "clf_level2"),
        signals=np.array([[0.5, 1.0, 2.0], [0.25, 4.0, 1.0]]),
        signal_names=("alignment_level2", "energy_level2", "spread_level2"),
        uncertainty={"entropy": {"mask": np.array([0.1, 0.2]), "class": np.array([0.3, 0.6])}},
    )
    found = failure_scores(predictions, "class")
    assert {name: values.tolist() for name, values in found.items()} == {
        "level 2": [0.2, 0.4],
        "low alignment, level 2": [-0.5, -0.25],
        "energy, level 2": [1.0, 4.0],
        "low spread, level 2": [-2.0, -1.0],
        "1 - confidence": pytest.approx([0.1, 0.3]),
        "entropy": [0.3, 0.6],
    }
    assert failure_scores(predictions, "mask")["level 2"].tolist() == [0.1, 0.3]
    values = failure_values(rank_failures(predictions), np.ones((1, 2)))
    assert values["failure", "mask", "entropy", "auroc"].tolist() == [1]
    assert values["failure", "mask", "low alignment, level 2", "aurc"].tolist() == [0.25]
