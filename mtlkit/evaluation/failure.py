"""What may predict that a network fails, and how well it does.

A mask has failed where its IoU is below 0.5, a class where it is another than the true one; images without lesion have
no mask that could fail. A good failure score is high where the network fails. Judged are the gates of each level, w_seg
for masks and w_clf for classes, and the signals that they come from, turned to where the publications expect failure;
and what needs neither: 1 less the probability of the likeliest class, the entropy, and where they were asked for the
entropies of Monte Carlo dropout and of flips (mtlkit.evaluation.uncertainty).

Source: the published evaluation of BTI-Net (arXiv 2606.29102); for the risk-coverage curve Geifman and El-Yaniv,
"Selective Classification for Deep Neural Networks" (arXiv 1705.08500).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mtlkit.evaluation.bootstrap import Array, Ranked, Values
from mtlkit.evaluation.predictions import Predictions

__all__ = ["BASELINE", "FAILED_IOU", "failure_scores", "failure_values", "failures", "rank_failures"]

FAILED_IOU = 0.5
BASELINE = "1 - confidence"
BRANCHES = {"mask": "seg", "class": "clf"}  # what failed, and the gate that is to predict it
# by UPA's signal: what it is called as a failure score, and its sign
SIGNALS = {
    "alignment": ("low alignment", -1),
    "energy": ("energy", 1),
    "spread": ("low spread", -1),
    "seg_variance": ("variance of the map", 1),
    "clf_variance": ("variance of the vector", 1),
}


def failures(predictions: Predictions) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """By what can fail, "mask" and each task: which rows did, and of which rows it is known."""
    found = {}
    if predictions.scores:
        iou = predictions.scores["iou"]
        found["mask"] = (iou < FAILED_IOU, ~np.isnan(iou))
    for task, labels in predictions.labels.items():
        found[task] = (predictions.wrong(task), labels >= 0)
    return found


def failure_scores(predictions: Predictions, what: str) -> dict[str, Array]:
    """What may predict the failure of a mask or a task, (N,) each, by name: gates, signals, and what needs neither."""
    scores = {}
    for i, name in enumerate(predictions.gate_names):
        branch, _, level = name.partition("_level")
        if level and branch == BRANCHES.get(what):
            assert predictions.gates is not None  # they have names
            scores[f"level {level}"] = predictions.gates[:, i]
    if scores and predictions.signals is not None:
        for name, values in zip(predictions.signal_names, predictions.signals.T, strict=True):
            signal, _, level = name.rpartition("_level")
            words, sign = SIGNALS[signal]
            scores[f"{words}, level {level}"] = sign * values
    scores[BASELINE] = 1 - predictions.confidence("class" if what == "mask" else what)
    return scores | {method: of[what] for method, of in predictions.uncertainty.items() if what in of}


def rank_failures(predictions: Predictions) -> dict[tuple[str, str], Ranked]:
    """Each score in its order, with what failed, by what can fail and the score's name."""
    return {
        (what, name): Ranked(np.where(known, score, np.nan), failed)
        for what, (failed, known) in failures(predictions).items()
        for name, score in failure_scores(predictions, what).items()
    }


def failure_values(ranked: Mapping[tuple[str, str], Ranked], weights: Array) -> Values:
    """How well each score predicts failure, by ("failure", what, score, figure), for `intervals`."""
    found: Values = {}
    for (what, name), scores in ranked.items():
        figures = zip(("auroc", "average_precision", "aurc"), scores.figures(weights), strict=True)
        found |= {("failure", what, name, figure): value for figure, value in figures}
    return found


def risk_coverage(score: Array, failed: NDArray[np.bool_]) -> tuple[Array, Array]:
    """The curve: coverage, and the share that fails of the answers which are kept, the surest first."""
    order = np.argsort(score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=np.nan) != 0)  # of each distinct score
    kept = ends + 1
    return kept / len(score), failed[order].cumsum()[ends] / kept
