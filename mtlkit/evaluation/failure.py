"""Scores that may predict failures of a network, and how well they do.

A mask has failed if its IoU is below 0.5, a class if it is wrong; for images without lesion the mask cannot fail. A
good failure score is high when the network fails. The scores are the gates of each level (w_seg for masks, w_clf for
classes) and their signals, with the sign for which the publications expect failure, and scores that need neither: 1
minus the probability of the likeliest class, the entropy, and if requested the entropies of Monte Carlo dropout and of
flips (mtlkit.evaluation.uncertainty).

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
BRANCHES = {"mask": "seg", "class": "clf"}  # what fails, and the gate that may predict it
# by UPA's signal: its name as a failure score, and its sign
SIGNALS = {
    "alignment": ("low alignment", -1),
    "energy": ("energy", 1),
    "spread": ("low spread", -1),
    "seg_variance": ("variance of the map", 1),
    "clf_variance": ("variance of the vector", 1),
}


def failures(predictions: Predictions) -> dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """For "mask" and each task: which rows failed, and for which rows this is known."""
    found = {}
    if predictions.scores:
        iou = predictions.scores["iou"]
        found["mask"] = (iou < FAILED_IOU, ~np.isnan(iou))
    for task, labels in predictions.labels.items():
        found[task] = (predictions.wrong(task), labels >= 0)
    return found


def failure_scores(predictions: Predictions, what: str) -> dict[str, Array]:
    """The scores that may predict the failure of a mask or a task, (N,) each, by name."""
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
    """Each score, sorted, with the failures, by target ("mask" or task) and score name."""
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
    """The curve: coverage, and the fraction of failures among the kept predictions, most certain first."""
    order = np.argsort(score, kind="stable")
    ends = np.flatnonzero(np.diff(score[order], append=np.nan) != 0)  # of each distinct score
    kept = ends + 1
    return kept / len(score), failed[order].cumsum()[ends] / kept
