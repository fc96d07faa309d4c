"""Calibrated probabilities and thresholds, both fitted on the validation part after training.

A classifier's logits are divided by one temperature T, which minimises the cross-entropy of the labels:

    p = softmax(logits / T)

T does not change the likeliest class. If there is a positive class, two thresholds for its probability are chosen too:
by Youden's index (the largest sensitivity + specificity - 1), and the highest with a sensitivity of at least 95 %.

Source: Guo et al., "On Calibration of Modern Neural Networks" (arXiv 1706.04599).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlkit._fields import read_fields
from mtlkit._probabilities import softmax

__all__ = ["Calibration", "fit_calibration"]

FILE = "calibration.json"  # in the folder of a run
NOT_OURS = "is not as a run writes it"
BOUNDS = 0.1, 10.0  # bounds of the temperature: if all predictions are right, the cross-entropy has no minimum
SENSITIVITY = 0.95
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """The calibration of a classifier on the validation part.

    Args:
        temperature: divisor of the logits.
        images: number of images it was fitted on.
        thresholds: thresholds for the probability of the positive class, by name: "youden" and "sensitivity_95".

    Example:
        >>> from mtlkit.training.calibration import Calibration
        >>> Calibration(1.5, 100).temperature
        1.5
    """

    temperature: float = 1.0
    images: int = 0
    thresholds: Mapping[str, float] = field(default_factory=dict)


def fit_calibration(logits: Array, labels: NDArray[np.int64], positive: int | None = None) -> Calibration:
    """Fits the temperature of a classifier, and chooses its thresholds.

    Args:
        logits: (N, K).
        labels: (N,), -1 if unknown.
        positive: the positive class, if any.

    Returns:
        A temperature of 1 without known labels, and no thresholds if a class is missing.

    Example:
        >>> import numpy as np
        >>> from mtlkit.training.calibration import fit_calibration
        >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [0.0, 4.0]])
        >>> round(fit_calibration(logits, np.array([0, 1, 1, 1])).temperature, 2)  # sure of 98 %, right in 75 %
        3.64
    """
    from scipy.optimize import minimize_scalar

    known = labels >= 0
    logits, labels = np.asarray(logits, dtype=np.float64)[known], labels[known]
    if not len(labels):
        return Calibration()

    def cross_entropy(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        top = scaled.max(1, keepdims=True)
        of_all = top[:, 0] + np.log(np.exp(scaled - top).sum(1))
        return float((of_all - scaled[np.arange(len(labels)), labels]).mean())

    low, high = map(math.log, BOUNDS)
    found: Any = minimize_scalar(cross_entropy, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    temperature = math.exp(found.x)
    thresholds = {} if positive is None else _thresholds(softmax(logits, temperature)[:, positive], labels == positive)
    return Calibration(temperature, len(labels), thresholds)


def _thresholds(scores: Array, positive: NDArray[np.bool_]) -> dict[str, float]:
    """Half-way between neighbouring scores, so that rounding does not matter."""
    if positive.all() or not positive.any():
        return {}
    values = np.unique(scores)
    cuts = np.concatenate([[values[0] / 2], (values[1:] + values[:-1]) / 2])  # starting with "all are positive"
    sensitivity = (scores[positive] >= cuts[:, None]).mean(1)
    specificity = (scores[~positive] < cuts[:, None]).mean(1)
    enough = sensitivity >= SENSITIVITY
    return {
        "youden": float(cuts[np.argmax(sensitivity + specificity)]),
        f"sensitivity_{SENSITIVITY:.0%}".rstrip("%"): float(cuts[enough][-1]),
    }


def as_values(calibration: Mapping[str, Calibration]) -> dict[str, Any]:
    """The content of calibration.json, by classifier."""
    return {task: asdict(one) for task, one in calibration.items()}


def read_calibration(path: Path) -> dict[str, Calibration]:
    """Reads calibration.json; empty if there is no such file, as in runs of earlier versions.

    Raises:
        DataError: it cannot be read, or is not in the form that a run writes.
    """
    if not path.exists():
        return {}
    found = read_fields(path, NOT_OURS)
    calibration = {}
    for task in found.values:
        entry = found.fields(task)
        thresholds = entry.fields("thresholds")
        calibration[task] = Calibration(
            entry.number("temperature"),
            entry.integer("images"),
            {name: thresholds.number(name) for name in thresholds.values},
        )
    return calibration
