"""Computes all reported results from predictions: metrics by task and class, failure detection, gates, displacement.

Failure scores are in mtlkit.evaluation.failure. The displacement by TIM is reported for all images, and for thirds of
the images with a lesion by IoU: easy (highest), medium and hard (lowest).
"""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlkit.evaluation.bootstrap import (
    Array,
    Figure,
    Ranked,
    Values,
    classification,
    intervals,
    reliability,
    score_means,
    threshold_scores,
)
from mtlkit.evaluation.failure import failure_values, failures, rank_failures
from mtlkit.evaluation.predictions import Predictions
from mtlkit.metrics import positive_class
from mtlkit.training.tasks import CLASS, HEADS

__all__ = ["epoch_gates", "epoch_rows", "judge", "table_rows"]

DIRECTIONS = ("seg_to_clf", "clf_to_seg")
DIFFICULTIES = ("easy", "medium", "hard")  # thirds of the images, by their IoU


# --- all figures ------------------------------------------------------------------------------------------------------


def _statistic(predictions: Predictions, ranked: Mapping[tuple[str, str], Ranked], weights: Array) -> Values:
    """All metrics with an interval, by (section, ...)."""
    found: Values = {}
    for name, value in score_means(weights, predictions.scores).items():
        found["figures", name] = value
    for task, labels in predictions.labels.items():
        positive = predictions.positive if task == CLASS.name else None
        for name, value in classification(weights, predictions.probabilities[task], labels, positive).items():
            if isinstance(name, str):
                found["figures", HEADS[task].prefix + name] = value
            else:
                found[("classes", task, *name)] = value
    return found | _calibration_values(predictions, weights) | failure_values(ranked, weights)


def _calibration_values(predictions: Predictions, weights: Array) -> Values:
    """The effect of the temperatures and of the validation part's thresholds, by ("calibration", ...)."""
    found: Values = {}
    for task, one in predictions.run.calibration.items():
        shares, labels = predictions.probabilities[task], predictions.labels[task]
        before = shares**one.temperature  # up to a constant: logits / T, times T again
        before /= before.sum(1, keepdims=True)
        for when, values in (("before", before), ("after", shares)):
            found |= {("calibration", task, when, name): v for name, v in reliability(weights, values, labels).items()}
        positive = positive_class(shares.shape[1], predictions.positive if task == CLASS.name else None)
        for name, threshold in one.thresholds.items():
            assert positive is not None  # thresholds apply to its probability
            known = labels >= 0
            scores = threshold_scores(
                weights[:, known], shares[known, positive] >= threshold, labels[known] == positive
            )
            found |= {("calibration", task, "thresholds", name, score): value for score, value in scores.items()}
    return found


def judge(predictions: Predictions, samples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Evaluates predictions.

    Args:
        predictions: predictions for a part of a data set.
        samples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Returns:
        "counts" of images and masks; "figures", the metrics by their names in training; "classes" by task and class;
        "confusion", a matrix for each task with the true classes as rows; "calibration" of probabilities, if the run
        has temperatures and thresholds; "failure_detection"; for networks that have them, "gates", "stages",
        "displacement" and "displacement_by_difficulty", mean and standard deviation over the images; and, if measured,
        the "seconds" per image of each failure score.

    Example:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from mtlkit.data import Record
        >>> from mtlkit.evaluation import Predictions, judge
        >>> from mtlkit.training import Config, SavedRun
        >>> run = SavedRun(Path("."), Config("views"), None, ("benign", "malignant"), (), None, {}, Path("."), {})
        >>> images = tuple(Record(name, Path(f"{name}.png"), 0, (), name) for name in "abc")
        >>> shares = np.array([[0.9, 0.1], [0.3, 0.7], [0.4, 0.6]])
        >>> found = judge(Predictions(run, images, (), {"class": np.array([0, 1, 0])}, {"class": shares}))
        >>> found["confusion"], round(found["figures"]["accuracy"].value, 3)
        ({'class': [[1, 1], [0, 1]]}, 0.667)
    """
    ranked = rank_failures(predictions)
    found = intervals(lambda weights: _statistic(predictions, ranked, weights), predictions.groups, samples, seed)
    names = predictions.run.tasks
    classes: dict[str, Any] = {task: {} for task in names}
    for task, labels in predictions.labels.items():
        for k, name in enumerate(names[task]):
            of_class = {key[3]: value for key, value in found.items() if key[:3] == ("classes", task, k)}
            classes[task][name] = {"images": int((labels == k).sum())} | of_class
    failure: dict[str, Any] = {}
    for what, (failed, known) in failures(predictions).items():
        scores: dict[str, dict[str, Figure]] = {}
        for key, value in found.items():
            if key[:2] == ("failure", what):
                scores.setdefault(key[2], {})[key[3]] = value
        failure[what] = {"images": int(known.sum()), "failures": int(failed[known].sum()), "scores": scores}
    return {
        "counts": _counts(predictions),
        "figures": {key[1]: value for key, value in found.items() if key[0] == "figures"},
        "classes": classes,
        "confusion": {task: confusion(predictions, task).tolist() for task in names},
        "calibration": _calibration(predictions, found),
        "failure_detection": failure,
        "seconds": dict(predictions.seconds),
        "gates": _weights(predictions, predictions.gates, predictions.gate_names),
        "stages": _weights(predictions, predictions.stages, predictions.stage_names),
        "displacement": _displacement(predictions),
        "displacement_by_difficulty": _by_difficulty(predictions),
    }


def _calibration(predictions: Predictions, found: Mapping[Any, Figure]) -> dict[str, Any]:
    """For each classifier its temperature, its probabilities before and after calibration, and its thresholds."""
    calibration: dict[str, Any] = {}
    for task, one in predictions.run.calibration.items():
        entry: dict[str, Any] = {"temperature": one.temperature, "before": {}, "after": {}}
        entry["thresholds"] = {name: {"threshold": value} for name, value in one.thresholds.items()}
        for key, value in found.items():
            if key[:2] == ("calibration", task):
                place = entry[key[2]] if len(key) == 4 else entry[key[2]][key[3]]
                place[key[-1]] = value
        calibration[task] = entry
    return calibration


def _counts(predictions: Predictions) -> dict[str, int]:
    counts = {"images": len(predictions), "groups": len(set(predictions.groups))}
    if predictions.sides:
        exams = {"exams": len(predictions.first_rows), "breasts": len(predictions)}
        return exams | {"groups": counts["groups"]}
    if predictions.scores:
        lesion, predicted = predictions.lesion, predictions.predicted_lesion
        assert lesion is not None  # scores combine both
        assert predicted is not None
        empty, drawn = predictions.empty, predicted > 0
        counts |= {
            "with_lesion": int((lesion > 0).sum()),
            "lesion_not_found": int(((lesion > 0) & ~drawn).sum()),
            "empty": int(empty.sum()),
            "empty_with_prediction": int((empty & drawn).sum()),
            "mask_not_known": int(np.isnan(lesion).sum()),
        }
    return counts


def confusion(predictions: Predictions, task: str) -> NDArray[np.int64]:
    """(K, K): how many rows of each true class (row) were given each class (column)."""
    labels, count = predictions.labels[task], len(predictions.run.tasks[task])
    known = labels >= 0
    pairs = labels[known] * count + predictions.predicted(task)[known]
    return np.bincount(pairs, minlength=count * count).reshape(count, count)


def _mean_sd(values: Array) -> dict[str, float]:
    """The mean, or NaN without values."""
    values = values[~np.isnan(values)]
    if not len(values):
        return {"mean": math.nan, "sd": math.nan}
    return {"mean": float(values.mean()), "sd": float(values.std())}


def _strata(predictions: Predictions) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """The class of each image or exam, and the class names; an exam has the class of the worse breast."""
    task, names = next(iter(predictions.run.tasks.items()))
    if not predictions.sides:
        return predictions.labels[task], names
    return HEADS[task].labels(predictions.records).max(1).values.numpy(), names


def _weights(predictions: Predictions, weights: Array | None, weight_names: tuple[str, ...]) -> dict[str, Any]:
    """Mean and standard deviation of each weight over the images, or exams, and over those of each class."""
    if weights is None:
        return {}
    rows, (labels, names) = predictions.first_rows, _strata(predictions)
    weights, labels = weights[rows], labels[rows]
    return {
        name: _mean_sd(values)
        | {"classes": {label: _mean_sd(values[labels == k]) for k, label in enumerate(names) if (labels == k).any()}}
        for name, values in zip(weight_names, weights.T, strict=True)
    }


def _displacement(predictions: Predictions, rows: Any = slice(None)) -> dict[str, Any]:
    if predictions.displacement is None:
        return {}
    moved = predictions.displacement[rows]
    return {
        direction: {f"level{level}": _mean_sd(moved[:, j, i]) for j, level in enumerate(predictions.levels)}
        for i, direction in enumerate(DIRECTIONS)
    }


def _by_difficulty(predictions: Predictions) -> dict[str, Any]:
    """The displacement in each third of the images by IoU; ties keep their order."""
    if predictions.displacement is None or not predictions.scores:
        return {}
    order = np.argsort(-predictions.scores["iou"], kind="stable")
    order = order[~np.isnan(predictions.scores["iou"][order])]
    if len(order) < len(DIFFICULTIES):
        return {}
    thirds = np.array_split(order, len(DIFFICULTIES))
    return {name: _displacement(predictions, rows) for name, rows in zip(DIFFICULTIES, thirds, strict=True)}


# --- tables -----------------------------------------------------------------------------------------------------------


def table_rows(predictions: Predictions) -> list[dict[str, Any]]:
    """A row for images.csv of each image or breast."""
    columns: dict[str, Any] = {"key": [record.key for record in predictions.records]}
    if predictions.sides:
        views = [r.views[:2] if side == "left" else r.views[2:] for r, side in _pairs(predictions)]
        columns["side"] = predictions.sides
        columns |= {name: [str(pair[i] or "") for pair in views] for i, name in enumerate(("cc", "mlo"))}
    else:
        columns["image"] = [str(record.image) for record in predictions.images]
    columns["group"] = predictions.groups
    for task, names in predictions.run.tasks.items():
        called = (*names, "")  # label -1
        columns[f"{task}_true"] = [called[label] for label in predictions.labels[task]]
        columns[f"{task}_predicted"] = [names[label] for label in predictions.predicted(task)]
        for name, values in zip(names, predictions.probabilities[task].T, strict=True):
            columns[f"{task}_p_{name}"] = values
    columns |= predictions.scores
    if predictions.scores:
        columns |= {"lesion_share": predictions.lesion, "predicted_share": predictions.predicted_lesion}
    for what, (failed, known) in failures(predictions).items():
        columns[f"{what}_failed"] = [int(wrong) if sure else "" for wrong, sure in zip(failed, known, strict=True)]
    if predictions.gates is not None:
        columns |= {f"gate_{name}": v for name, v in zip(predictions.gate_names, predictions.gates.T, strict=True)}
    if predictions.signals is not None:
        columns |= {
            f"signal_{name}": v for name, v in zip(predictions.signal_names, predictions.signals.T, strict=True)
        }
    for method, of in predictions.uncertainty.items():
        columns |= {f"{method} {what}".lower().replace("-", "_").replace(" ", "_"): v for what, v in of.items()}
    if predictions.displacement is not None:
        for i, direction in enumerate(DIRECTIONS):
            for j, level in enumerate(predictions.levels):
                columns[f"displacement_{direction}_level{level}"] = predictions.displacement[:, j, i]
    cells = [[_cell(value) for value in column] for column in columns.values()]
    return [dict(zip(columns, row, strict=True)) for row in zip(*cells, strict=True)]


def _pairs(predictions: Predictions) -> Any:
    return zip(predictions.records, predictions.sides, strict=True)


def _cell(value: Any) -> Any:
    """Six digits, or "" for NaN."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def worst_rows(predictions: Predictions, count: int) -> list[int]:
    """The rows to inspect first: those with the lowest IoU or, without masks, the lowest true-class probability."""
    if predictions.scores and not np.isnan(predictions.scores["iou"]).all():
        badness = predictions.scores["iou"]
    else:
        task = next(iter(predictions.run.tasks))
        labels = predictions.labels[task]
        of_true = predictions.probabilities[task][np.arange(len(labels)), labels.clip(0)]
        badness = np.where(labels >= 0, of_true, np.nan)
    order = np.argsort(badness, kind="stable")  # NaN last
    return [int(row) for row in order[:count] if not np.isnan(badness[row])]


def epoch_rows(folder: Path) -> list[list[dict[str, str]]]:
    """The rows of metrics.csv for each stage of a run, as text; a table that cannot be read has none."""
    stages = []
    for path in sorted(folder.glob("stage*/metrics.csv")):
        try:
            with path.open(newline="", encoding="utf-8") as file:
                stages.append(list(csv.DictReader(file)))
        except (csv.Error, OSError, ValueError):
            stages.append([])  # it was edited
    return stages


def epoch_gates(folder: Path, part: str = "val") -> list[dict[str, list[float]]]:
    """The mean gates by epoch on a part of the data, by name, for each stage of a run that logged them."""
    stages = []
    for rows in epoch_rows(folder):
        names = [name for name in (rows[0] if rows else ()) if name and name.startswith(f"{part}/gate_")]
        try:
            columns = {name.removeprefix(f"{part}/gate_"): [float(row[name]) for row in rows] for name in names}
        except (TypeError, ValueError):
            columns = {}  # an edited table has no curve
        if any(math.isinf(value) for values in columns.values() for value in values):
            columns = {}
        if columns:
            stages.append(columns)
    return stages
