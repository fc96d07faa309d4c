"""Effects of forced gates and their predictors: compared with single network calls, by hand, and in an evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest

from mtlkit.cli import main
from mtlkit.data import Record
from mtlkit.evaluation import Predictions, evaluate
from mtlkit.evaluation.oracle import check_oracle, force_gates, judge_oracle, oracle_rows
from mtlkit.metrics import segmentation_scores

GATES = ("seg_level1", "clf_level1", "seg_level4", "clf_level4")


def test_forced_gates_are_those_of_single_calls(lesion):
    records = lesion.open_data().records[:2]
    told = []
    forced = force_gates(lesion, records, batch_size=1, progress=lambda *pair: told.append(pair))
    assert tuple(forced) == (*GATES, "all")
    assert told == [(1, 2), (2, 2)]
    for name, gates in (("clf_level4", {"clf_level4": 1.0}), ("all", dict.fromkeys(GATES, 1.0))):
        for i, batch in enumerate(lesion.loader(records, 1)):
            found = lesion.predict(batch, gates=gates)
            iou = segmentation_scores(found["mask"], batch["mask"])["iou"]
            assert forced[name]["on"]["iou"][i] == pytest.approx(float(iou), abs=1e-5)
            of_true = float(found["class"][0, batch["label"]])
            assert forced[name]["on"]["probability"][i] == pytest.approx(of_true, abs=1e-5)
    assert not np.allclose(forced["all"]["off"]["probability"], forced["all"]["on"]["probability"])
    np.testing.assert_allclose(forced["clf_level4"]["off"]["iou"], forced["clf_level4"]["on"]["iou"])


def by_hand() -> tuple[Predictions, dict]:
    """Four images of one level: the gate of the mask predicts the gain, that of the class does not."""
    records = tuple(Record(name, Path(f"{name}.png"), 0, (), name) for name in "abcd")
    predictions = Predictions(
        None,
        records,
        (),
        {"class": np.array([0, 0, 1, -1])},
        {"class": np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.5, 0.5]])},
        {"iou": np.array([0.5, 0.6, 0.7, np.nan])},
        gates=np.array([[0.2, 0.9], [0.6, 0.8], [0.9, 0.1], [0.4, 0.4]]),
        gate_names=("seg_level2", "clf_level2"),
        signals=np.array([[3.0, 0.0, 1.0], [2.0, 0.0, 2.0], [1.0, 0.0, 3.0], [9.0, 0.0, 9.0]]),
        signal_names=("alignment_level2", "energy_level2", "spread_level2"),
    )
    nan = np.nan
    off = {"iou": np.array([0.6, 0.5, 0.5, nan]), "probability": np.array([0.5, 0.5, 0.7, nan])}
    on = {"iou": np.array([0.4, 0.6, 0.8, nan]), "probability": np.array([0.4, 0.5, 0.9, nan])}
    return predictions, {name: {"off": off, "on": on} for name in ("seg_level2", "clf_level2", "all")}


def test_judgement_by_hand():
    found = judge_oracle(*by_hand(), samples=0)
    mask = found["seg_level2"]["iou"]
    means = {key: mask[key].value for key in ("off", "on", "learnt", "best", "gain", "helps", "right")}
    assert means == pytest.approx(
        {
            "off": 1.6 / 3,
            "on": 0.6,
            "learnt": 0.6,
            "best": 2 / 3,
            "gain": 0.2 / 3,
            "helps": 2 / 3,
            "right": 1,
        }
    )
    correlation = {key: value.value for key, value in mask["correlation"].items()}
    assert correlation.pop("energy") != correlation.get("gate")  # a constant score has no correlation
    assert correlation == pytest.approx({"gate": 1, "alignment": -1, "spread": 1, "1 - confidence": 1})
    clf = found["clf_level2"]["probability"]
    assert (clf["helps"].value, clf["right"].value) == (0.5, 0)  # an image without gain does not count
    assert "right" not in found["clf_level2"]["iou"]
    assert set(found["all"]["iou"]) == {"off", "on", "learnt", "best", "gain"}


def test_rows_of_the_table():
    rows = oracle_rows(*by_hand())
    assert [row["key"] for row in rows] == list("abcd")
    assert rows[1]["iou_seg_level2_on"] == 0.6
    assert rows[2]["probability_learnt"] == 0.7


def test_evaluation_with_oracle_and_rivals(lesion, tmp_path, tables, capsys):
    out = tmp_path / "out"
    command = ["evaluate", str(lesion.folder), "--out", str(out), "--samples", "5", "--examples", "0"]
    assert main([*command, "--oracle", "--rivals", "2"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert tuple(metrics["oracle"]) == (*GATES, "all")
    gains = [float(row["iou_seg_level4_on"]) - float(row["iou_seg_level4_off"]) for row in tables(out / "oracle.csv")]
    assert np.nanmean(gains) == pytest.approx(metrics["oracle"]["seg_level4"]["iou"]["gain"]["value"], abs=1e-6)
    scores = metrics["failure_detection"]["class"]["scores"]
    assert {"Monte Carlo dropout", "flips", "entropy", "1 - confidence", "level 1"} <= set(scores)
    assert set(scores["flips"]) == {"auroc", "average_precision", "aurc"}
    assert set(metrics["seconds"]) == {"one pass", "Monte Carlo dropout", "flips"}
    pictures = {path.stem for path in out.glob("*.png")}
    assert {"oracle_gain", "oracle_correlation", "failure_roc", "failure_precision_recall", "risk_coverage"} <= pictures
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<h2>Oracle</h2>" in page
    assert "milliseconds an image" in page
    shown = capsys.readouterr().out
    assert "Rank correlation with that gain" in shown
    assert f"{metrics['oracle']['all']['iou']['gain']['value']:.3f}" in shown


def test_oracle_of_what_has_no_gates(views, plain, tmp_path):
    for run in (views, plain):
        name = run.config.model.name
        with pytest.raises(ValueError, match=rf"oracle: expected a network with gates .*, got {name} in "):
            check_oracle(run)
    with pytest.raises(ValueError, match="oracle: expected a network with gates"):
        evaluate(plain, None, tmp_path / "out", oracle=True)
    assert not (tmp_path / "out").exists()
