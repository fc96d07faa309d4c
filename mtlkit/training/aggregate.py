"""Metrics over repeated runs: mean and standard deviation."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from mtlkit.training.tasks import LOSSES

__all__ = ["best_of", "digits_of", "holm", "in_words", "summarise"]

_Key = TypeVar("_Key")


def summarise(runs: Sequence[Mapping[_Key, float | None]]) -> dict[_Key, dict[str, float]]:
    """Mean and standard deviation of each metric over runs.

    Args:
        runs: metrics of each run, by the same names; None and NaN mark undefined values.

    Returns:
        "mean" and "sd" of each metric: with one degree of freedom less, NaN for a single run. A figure that a run lacks
        has neither.

    Example:
        >>> from mtlkit.training.aggregate import summarise
        >>> summarise([{"iou": 0.5}, {"iou": 1.0}])["iou"]["mean"]
        0.75
    """
    table = np.array([[run[name] for name in runs[0]] for run in runs], dtype=np.float64)  # (runs, figures)
    spread = table.std(0, ddof=1) if len(runs) > 1 else np.full(table.shape[1], np.nan)
    pairs = zip(runs[0], table.mean(0).tolist(), spread.tolist(), strict=True)
    return {name: {"mean": mean, "sd": sd} for name, mean, sd in pairs}


def digits_of(name: str) -> int:
    """The number of decimals to show for a metric: none for counts of images, otherwise four.

    Example:
        >>> from mtlkit.training.aggregate import digits_of
        >>> digits_of("label_images"), digits_of("iou")
        (0, 4)
    """
    return 0 if name.endswith(("images", "empty")) else 4


def best_of(name: str) -> Callable[[Iterable[float]], float] | None:
    """What picks the best value of a figure.

    `max` for scores, `min` for losses, errors, distances and times, None for counts and gates, of which none is best.

    Example:
        >>> from mtlkit.training.aggregate import best_of
        >>> best_of("iou") is max, best_of("loss") is min, best_of("label_images")
        (True, True, None)
    """
    if name.startswith("gate_") or digits_of(name) == 0:
        return None
    return (
        min
        if name in LOSSES or name.endswith(("_error", "_distance", "_seconds", "hd95", "assd", "hd95_mm", "assd_mm"))
        else max
    )


def in_words(pair: Mapping[str, float | None], digits: int = 4) -> str:
    """Mean ± standard deviation, or only the mean if there is no deviation.

    Example:
        >>> from mtlkit.training.aggregate import in_words
        >>> in_words({"mean": 0.75, "sd": 0.125}, 3), in_words({"mean": 0.75, "sd": None})
        ('0.750 ± 0.125', '0.7500')
    """
    mean, sd = (float("nan") if value is None else value for value in (pair["mean"], pair["sd"]))
    if np.isnan(mean):
        return "not defined"
    return f"{mean:.{digits}f}" + ("" if np.isnan(sd) else f" ± {sd:.{digits}f}")


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, adjusted by Holm's method for the family-wise error rate; NaN stays NaN.

    Example:
        >>> from mtlkit.training.aggregate import holm
        >>> holm([0.01, 0.25, 0.03])
        [0.03, 0.25, 0.06]
    """
    order = sorted((i for i, p in enumerate(p_values) if not np.isnan(p)), key=lambda i: p_values[i])
    adjusted, largest = list(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
