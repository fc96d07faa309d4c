"""The oracle: the effect of the tasks' interaction on each image, and whether the gates predict it.

Each gate is forced to 0 and to 1 for every image while the others stay unchanged; then all gates are forced at once.
The gain of a gate is its target with 1 minus its target with 0: the IoU for gates of the mask, the probability of the
true class for gates of the class. A gate is right if it is above 0.5 and the gain is positive, or below 0.5 and the
gain is negative; images with gain 0 do not count. An oracle that knew the gain would take the better of the two for
each image. Spearman's rank correlation with the gain is reported for the gate, its signals, and 1 minus the confidence.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtlkit.data import Record
from mtlkit.evaluation.bootstrap import Array, Figure, Values, intervals, score_means, spearman
from mtlkit.evaluation.failure import BASELINE
from mtlkit.evaluation.predictions import Predictions
from mtlkit.metrics import segmentation_scores
from mtlkit.training import SavedRun

__all__ = ["ALL", "check_oracle", "force_gates", "judge_oracle", "oracle_rows"]

ALL = "all"  # all gates at once
STATES = {"off": 0.0, "on": 1.0}
TARGETS = {"seg": "iou", "clf": "probability"}  # target of a gate, by its branch
Forced = dict[str, dict[str, dict[str, NDArray[np.float64]]]]  # by gate, state and target, (N,)


def check_oracle(run: SavedRun) -> None:
    """Raises unless the network has gates that weight the interaction of two tasks."""
    if not run.model.gate_names or not run.model.interaction_levels:
        words = "expected a network with gates for the interaction of its tasks (MBDI or BTI-Net with upa)"
        raise ValueError(f"oracle: {words}, got {run.config.model.name} in {run.folder}")


def force_gates(
    run: SavedRun,
    records: Sequence[Record],
    *,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Forced:
    """IoU and true-class probability of each image with forced gates.

    Args:
        run: a run from `mtlkit.training.load_run`.
        records: records of a catalogue.
        batch_size: batch size; by default that of the run's own evaluation.
        progress: called with the number of processed records and the total.

    Returns:
        By the name of a gate, or "all", by "off" and "on", and by "iou" and "probability": (N,), NaN without lesion or
        for an unknown class.
    """
    names, done = run.model.gate_names, 0
    parts: dict[tuple[str, str, str], list[torch.Tensor]] = {}
    nan = torch.tensor(float("nan"))
    for batch in run.loader(records, batch_size):
        labels = batch["label"]
        for name in (*names, ALL):
            for state, weight in STATES.items():
                found = run.predict(batch, gates=dict.fromkeys(names if name == ALL else (name,), weight))
                iou = segmentation_scores(found["mask"], batch["mask"])["iou"]
                of_true = found["class"].gather(1, labels.clamp(min=0)[:, None])[:, 0]
                parts.setdefault((name, state, "iou"), []).append(torch.where(batch["segmented"], iou, nan))
                parts.setdefault((name, state, "probability"), []).append(torch.where(labels >= 0, of_true, nan))
        done += len(batch["key"])
        if progress is not None:
            progress(done, len(records))
    forced: Forced = {}
    for (name, state, target), values in parts.items():
        forced.setdefault(name, {}).setdefault(state, {})[target] = torch.cat(values).double().numpy()
    return forced


def _learnt(predictions: Predictions) -> dict[str, Array]:
    """By target, the result of each image with the network's own gates."""
    labels = predictions.labels["class"]
    of_true = predictions.probabilities["class"][np.arange(len(labels)), labels.clip(0)]
    return {"iou": predictions.scores["iou"], "probability": np.where(labels >= 0, of_true, np.nan)}


def _predictors(predictions: Predictions, gate: str) -> dict[str, Array]:
    """Scores that may predict the gain of a gate, (N,) each."""
    assert predictions.gates is not None
    assert predictions.signals is not None
    _, _, level = gate.partition("_level")
    found = {"gate": predictions.gates[:, predictions.gate_names.index(gate)]}
    for name, values in zip(predictions.signal_names, predictions.signals.T, strict=True):
        signal, _, place = name.rpartition("_level")
        if place == level:
            found[signal] = values
    return found | {BASELINE: 1 - predictions.confidence("class")}


def _statistic(predictions: Predictions, forced: Forced, weights: Array) -> Values:
    """All metrics of the oracle, by (gate, ...)."""
    found: Values = {}
    learnt = _learnt(predictions)
    for name, states in forced.items():
        for target in TARGETS.values():
            off, on = states["off"][target], states["on"][target]
            columns = {"off": off, "on": on, "learnt": learnt[target], "best": np.maximum(off, on), "gain": on - off}
            found |= {(name, target, key): value for key, value in score_means(weights, columns).items()}
        if name == ALL:
            continue
        target = TARGETS[name.partition("_level")[0]]
        gain = states["on"][target] - states["off"][target]
        scores = _predictors(predictions, name)
        decided = ~np.isnan(gain) & (gain != 0)
        rows = {
            "helps": np.where(decided, gain > 0, np.nan),
            "right": np.where(decided, (gain > 0) == (scores["gate"] > 0.5), np.nan),
        }
        found |= {(name, target, key): value for key, value in score_means(weights, rows).items()}
        for key, score in scores.items():
            found[name, target, "correlation", key] = spearman(weights, score, gain)
    return found


def judge_oracle(predictions: Predictions, forced: Forced, samples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Evaluates the gates by an oracle.

    Args:
        predictions: predictions with the network's own gates.
        forced: result of `force_gates` for the same images.
        samples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Returns:
        By the name of a gate or "all", and by "iou" and "probability": the means "off", "on", "learnt" and "best" (the
        better of off and on for each image) and the "gain"; for the gate's own target also "helps", the fraction of
        images with positive gain, "right", how often the gate is on the right side of 0.5, and "correlation" with the
        gain by score.
    """
    found = intervals(lambda weights: _statistic(predictions, forced, weights), predictions.groups, samples, seed)
    tree: dict[str, Any] = {}
    for key, figure in found.items():
        place = tree
        for part in key[:-1]:
            place = place.setdefault(part, {})
        place[key[-1]] = figure
    return tree


def oracle_rows(predictions: Predictions, forced: Forced) -> list[dict[str, Any]]:
    """A row of oracle.csv for each image: its targets with each gate off and on, and with the network's own gates."""
    columns: dict[str, Any] = {"key": [record.key for record in predictions.records]}
    columns |= {f"{target}_learnt": values for target, values in _learnt(predictions).items()}
    for name, states in forced.items():
        columns |= {f"{target}_{name}_{state}": values for state, of in states.items() for target, values in of.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def correlated(oracle: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Figure]]]:
    """The correlation with the gain, by branch, score and level."""
    found: dict[str, dict[str, dict[str, Figure]]] = {}
    for name, entry in oracle.items():
        branch, _, level = name.partition("_level")
        if level:
            for key, figure in entry[TARGETS[branch]]["correlation"].items():
                found.setdefault(branch, {}).setdefault(key, {})[f"level {level}"] = figure
    return found
