"""The data in the plots of failure detection, difficulty, stages and the oracle."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from mtlkit.data import Record
from mtlkit.evaluation import Figure as Interval
from mtlkit.evaluation import Predictions
from mtlkit.evaluation.failure import risk_coverage
from mtlkit.evaluation.interaction_plots import (
    draw_by_difficulty,
    draw_correlations,
    draw_failure_curves,
    draw_gains,
    draw_risk,
    draw_stages,
)


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that would be saved as PNG, in order; nothing is written."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def lines(figure: Figure) -> list[dict[str, np.ndarray]]:
    """For each panel, the drawn data by name in the legend."""
    return [{line.get_label(): line.get_xydata() for line in ax.lines} for ax in figure.axes]


def test_failure_curves_are_of_gates_by_level_and_of_what_needs_none(drawn):
    names, generator = "abcdefgh", np.random.default_rng(0)
    records = tuple(Record(name, Path(f"{name}.png"), 0, (), name) for name in names)
    shares, gates = generator.random((8, 1)), generator.random((8, 2))
    predictions = Predictions(
        None,
        records,
        (),
        {"class": np.zeros(8, dtype=int)},
        {"class": np.concatenate([shares, 1 - shares], 1)},
        gates=gates,
        gate_names=("seg_level3", "clf_level3"),
        signals=generator.random((8, 3)),
        signal_names=("alignment_level3", "energy_level3", "spread_level3"),
        uncertainty={"entropy": {"class": generator.random(8)}},
    )
    draw_failure_curves(predictions, draw_risk, "x", "y", "upper left", lambda share: [share, share])
    (found, _) = lines(drawn[0])
    assert {"level 3", "1 - confidence", "entropy"} <= set(found)
    assert not any("align" in name for name in found)
    failed = shares[:, 0] < 0.5
    np.testing.assert_allclose(found["level 3"], np.stack(risk_coverage(gates[:, 1], failed), 1))
    assert drawn[0].axes[0].get_title("left") == f"class: {failed.sum()} of 8 failed"


def test_displacement_has_a_line_for_each_difficulty(drawn):
    entries = {name: {"mean": mean, "sd": 0.1} for name, mean in (("level1", 0.2), ("level4", 0.4))}
    draw_by_difficulty({name: {"seg_to_clf": entries, "clf_to_seg": entries} for name in ("easy", "medium", "hard")})
    for ax in drawn[0].axes:
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["level 1", "level 4"]
        assert len(ax.containers) == 3
        assert [container.lines[0].get_ydata().tolist() for container in ax.containers] == [[0.2, 0.4]] * 3


def test_stages_have_a_panel_for_each_expert(drawn):
    entry = {"mean": 0.5, "sd": 0.1, "classes": {"benign": {"mean": 0.4, "sd": 0.1}}}
    draw_stages({f"{expert}_stage{i}": entry for expert in ("image", "tumor") for i in (1, 2, 3, 4)})
    assert [ax.get_title("left") for ax in drawn[0].axes] == ["image", "tumor"]
    for ax in drawn[0].axes:
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["W1", "W2", "W3", "W4"]
        assert [container.get_label() for container in ax.containers] == ["all", "benign"]


def test_oracle_has_a_panel_for_each_branch(drawn):
    figure = Interval(0.2, 0.1, 0.3)
    gate = {target: {"gain": figure, "correlation": {"gate": figure}} for target in ("iou", "probability")}
    oracle = {name: dict(gate) for name in ("seg_level1", "clf_level1", "seg_level4", "clf_level4", "all")}
    draw_gains(oracle)
    draw_correlations(oracle)
    ticks = [[tick.get_text() for tick in ax.get_xticklabels()] for found in drawn for ax in found.axes]
    assert ticks == [["level 1", "level 4", "all gates"]] * 2 + [["level 1", "level 4"]] * 2
