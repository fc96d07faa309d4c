"""Probabilities that mean what they say, and thresholds: both found on the validation part, after training.

A classifier's logits are divided by one temperature T, which minimises the cross-entropy of the labels:

    p = softmax(logits / T)

T leaves the likeliest class as it is. Where there is a positive class, thresholds of its probability are chosen, too:
that of Youden's index (the largest sensitivity + specificity - 1), and the highest that keeps a sensitivity of 95 %.

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
BOUNDS = 0.1, 10.0  # of the temperature: where all is right, the cross-entropy has no minimum
SENSITIVITY = 0.95
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """What the validation part says of a classifier's probabilities.

    Args:
        temperature: by which its logits are divided.
        images: how many it was fitted on.
        thresholds: of the probability of the positive class, by name: "youden" and "sensitivity_95".

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
        labels: (N,), -1 where not known.
        positive: the class that is to be found, if any.

    Returns:
        A temperature of 1 where nothing is known, and no thresholds where a class is missing.

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
    """Half-way between neighbouring scores, so that rounding decides nothing."""
    if positive.all() or not positive.any():
        return {}
    values = np.unique(scores)
    cuts = np.concatenate([[values[0] / 2], (values[1:] + values[:-1]) / 2])  # from "all are positive" on
    sensitivity = (scores[positive] >= cuts[:, None]).mean(1)
    specificity = (scores[~positive] < cuts[:, None]).mean(1)
    enough = sensitivity >= SENSITIVITY
    return {
        "youden": float(cuts[np.argmax(sensitivity + specificity)]),
        f"sensitivity_{SENSITIVITY:.0%}".rstrip("%"): float(cuts[enough][-1]),
    }


def as_values(calibration: Mapping[str, Calibration]) -> dict[str, Any]:
    """What calibration.json holds, by classifier."""
    return {task: asdict(one) for task, one in calibration.items()}


def read_calibration(path: Path) -> dict[str, Calibration]:
    """What calibration.json says; nothing where there is no such file, as in runs of earlier versions.

    Raises:
        DataError: it cannot be read, or is not as a run writes it.
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
