"""Bootstrap intervals of metrics such as means, accuracies and areas under curves.

Each statistic is a function of the weights of the images. With all weights 1 it is the metric itself, as in
mtlkit.metrics. The bootstrap resamples groups (patients if known, otherwise images) with replacement; its samples are
the rows of a weight matrix, so that thousands of samples take seconds. The interval is from percentile 2.5 to 97.5;
samples for which the metric is undefined are left out.

Source: Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mtlkit.metrics import positive_class

__all__ = ["Figure", "classification", "intervals", "ranking", "reliability", "risk_area", "score_means", "spearman"]

Array = NDArray[np.float64]
Values = dict[Any, Array]
Statistic = Callable[[Array], Values]

PERCENTILES = (2.5, 97.5)
BINS = 10  # bins of confidence for the calibration error
TINY = np.finfo(np.float64).tiny
CELLS = 200_000  # numbers in a block of the weight matrix: 1.6 MB, which fits into a cache


class Figure(NamedTuple):
    """A metric and its interval; NaN if undefined.

    Example:
        >>> from mtlkit.evaluation import Figure
        >>> str(Figure(0.75, 0.7, 0.8125))
        '0.750 (0.700 to 0.812)'
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "not defined"
        if np.isnan(self.low):
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


# --- the bootstrap ----------------------------------------------------------------------------------------------------


def resampled(groups: Sequence[str], samples: int, seed: int) -> Iterator[Array]:
    """Weights (r, N) in blocks of samples: how often the group of each image is drawn."""
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    generator = np.random.default_rng(seed)
    step = max(1, CELLS // max(1, len(groups)))
    for first in range(0, samples, step):
        drawn = generator.integers(len(names), size=(min(step, samples - first), len(names)))
        counts = np.stack([np.bincount(row, minlength=len(names)) for row in drawn])  # (r, groups)
        yield counts[:, index].astype(np.float64)


def intervals(statistic: Statistic, groups: Sequence[str], samples: int = 2000, seed: int = 0) -> dict[Any, Figure]:
    """The metrics of a statistic with bootstrap intervals.

    Args:
        statistic: function of weights (r, N) that returns the metrics by name, (r,) each.
        groups: group of each of the N images; groups are drawn together.
        samples: number of bootstrap samples; with 0 the intervals are NaN.
        seed: seed of the bootstrap.

    Raises:
        ValueError: there is no image, or the number of samples is negative.

    Example:
        >>> import numpy as np
        >>> from mtlkit.evaluation import intervals, score_means
        >>> scores = {"iou": np.array([0.5, 0.9, np.nan, 0.7])}
        >>> str(intervals(lambda weights: score_means(weights, scores), ["a", "b", "c", "d"])["iou"])
        '0.700 (0.500 to 0.900)'
    """
    if not len(groups):
        raise ValueError("groups: expected at least one image, got none")
    if samples < 0:
        raise ValueError(f"samples: expected at least 0, got {samples}")
    values = {name: float(value[0]) for name, value in statistic(np.ones((1, len(groups)))).items()}
    drawn = [statistic(weights) for weights in resampled(groups, samples, seed)]
    found = {}
    for name, value in values.items():
        spread = np.concatenate([part[name] for part in drawn]) if drawn else np.empty(0)
        spread = spread[~np.isnan(spread)]
        low, high = np.percentile(spread, PERCENTILES) if len(spread) and not np.isnan(value) else (np.nan, np.nan)
        found[name] = Figure(value, float(low), float(high))
    return found


# --- statistics -------------------------------------------------------------------------------------------------------


def _divide(above: Array, below: Array) -> Array:
    """The quotient, with NaN for 0 / 0."""
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=below != 0)


def score_means(weights: Array, scores: Mapping[str, Array]) -> Values:
    """The mean of each score (N,) over the images for which it is not NaN.

    Example:
        >>> import numpy as np
        >>> from mtlkit.evaluation import score_means
        >>> weights = np.array([[1.0, 1.0, 1.0], [3.0, 0.0, 0.0]])
        >>> score_means(weights, {"dice": np.array([0.5, 0.75, np.nan])})
        {'dice': array([0.625, 0.5  ])}
    """
    found = {}
    for name, values in scores.items():
        known = ~np.isnan(values)
        found[name] = _divide(weights[:, known] @ values[known], weights[:, known].sum(1))
    return found


class Ranked:
    """Sorted scores (N,) of positives and negatives, for `ranking` and `risk_area`; NaN is left out.

    The bootstrap calls a statistic once for each block of samples, so the scores are sorted once here.

    Args:
        scores: (N,).
        positive: (N,), whether each score belongs to a positive.

    Example:
        >>> import numpy as np
        >>> from mtlkit.evaluation.bootstrap import Ranked
        >>> Ranked(np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])).figures(np.ones((1, 4)))
        (array([0.875]), array([0.83333333]), array([0.29166667]))
    """

    def __init__(self, scores: Array, positive: NDArray[np.bool_]) -> None:
        known = np.flatnonzero(~np.isnan(scores))
        self.order = known[np.argsort(scores[known], kind="stable")]
        distinct = np.diff(scores[self.order], prepend=np.nan) != 0
        self.starts = np.flatnonzero(distinct)  # for each distinct score
        hit = positive[self.order]
        self.positives = self.order[hit]
        of = (np.cumsum(distinct) - 1)[hit]  # for each positive, the index of its distinct score
        self.first = np.flatnonzero(np.diff(of, prepend=-1) != 0)
        self.at = of[self.first]  # the distinct scores of positives

    def figures(self, weights: Array) -> tuple[Array, Array, Array]:
        """Area under the ROC curve, average precision and area under the risk-coverage curve, (r,) each."""
        if not len(self.order):
            nothing = np.full(len(weights), np.nan)
            return nothing, nothing, nothing
        here = _sums(weights.take(self.order, axis=1), self.starts)  # (r, distinct): weight at each score
        kept = here.cumsum(1)  # at most this score
        everything = kept[:, -1].copy()
        if not len(self.at):
            nothing = np.full(len(weights), np.nan)
            return nothing, nothing, _divide(np.zeros(len(weights)), everything)
        above = _sums(weights.take(self.positives, axis=1), self.first)  # (r, scores of positives): their own weight
        here_too, kept_too, found = here[:, self.at], kept[:, self.at], above.cumsum(1)
        positives = found[:, -1]
        negatives = everything - positives
        possible = (positives > 0) & (negatives > 0)
        least = np.where(above > 0, everything[:, None] - kept_too + here_too, 1)  # weight of at least the score
        average = _divide(_dot(above, (positives[:, None] - found + above) / least), positives)
        area = _divide(_dot(above, kept_too - found - (here_too - above) / 2), positives * negatives)
        # the risk at each score is the weight of positives up to it over the total weight up to it, so a positive #
        # counts at its own score and at all higher ones
        shares = np.divide(here, np.maximum(kept, TINY, out=kept), out=here)
        shares_too = shares[:, self.at]
        behind = shares.cumsum(1, out=kept)
        risk = _dot(above, behind[:, -1:] - behind[:, self.at] + shares_too)
        return (
            np.where(possible, area, np.nan),
            np.where(possible, average, np.nan),
            _divide(risk, everything),
        )


def _sums(values: Array, starts: NDArray[np.int64]) -> Array:
    """The sums between `starts` along the rows."""
    return values if len(starts) == values.shape[1] else np.add.reduceat(values, starts, axis=1)


def _dot(first: Array, second: Array) -> Array:
    """The dot product of each pair of rows."""
    return np.einsum("rn,rn->r", first, second)


def ranking(weights: Array, scores: Array, positive: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Area under the ROC curve and average precision of scores (N,), (r,) each; scores of NaN are left out.

    Both are NaN in samples without positives or without negatives. Ties count half in the area. They equal
    scikit-learn's results, but for all samples at once: scikit-learn takes one sample at a time and is fifty times
    slower.

    Example:
        >>> import numpy as np
        >>> from mtlkit.evaluation import ranking
        >>> ranking(np.ones((1, 4)), np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True]))
        (array([0.875]), array([0.83333333]))
    """
    return Ranked(scores, positive).figures(weights)[:2]


def risk_area(weights: Array, scores: Array, failed: NDArray[np.bool_]) -> Array:
    """Area under the risk-coverage curve of scores (N,), (r,); scores of NaN are left out.

    The risk at a coverage is the fraction of failures among the kept images, those with the lowest scores. 0 is
    perfect; an uninformative score has the overall fraction of failures. Images with equal scores are kept or left out
    together.

    Example:
        >>> import numpy as np
        >>> from mtlkit.evaluation import risk_area
        >>> risk_area(np.ones((1, 4)), np.array([0.1, 0.2, 0.3, 0.9]), np.array([False, False, False, True]))
        array([0.0625])
    """
    return Ranked(scores, failed).figures(weights)[2]


def _ranks(weights: Array, values: Array) -> Array:
    """(r, N): for each value, the weight below it plus half of the weight equal to it."""
    _, places = np.unique(values, return_inverse=True)
    order = np.argsort(places, kind="stable")
    starts = np.flatnonzero(np.diff(places[order], prepend=-1) != 0)
    here = np.add.reduceat(weights[:, order], starts, axis=1)  # (r, distinct)
    return (here.cumsum(1) - here / 2)[:, places]


def spearman(weights: Array, first: Array, second: Array) -> Array:
    """Spearman's rank correlation of two columns (N,), (r,); NaN in either is left out.

    It equals scipy's, for all samples at once; NaN if a column is constant.

    Example:
        >>> import numpy as np
        >>> from mtlkit.evaluation import spearman
        >>> spearman(np.ones((1, 4)), np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 8.0, 27.0, 2.0]))
        array([0.4])
    """
    known = ~(np.isnan(first) | np.isnan(second))
    if not known.any():
        return np.full(len(weights), np.nan)
    weights = weights[:, known]
    total = weights.sum(1, keepdims=True)
    x, y = (_ranks(weights, column[known]) for column in (first, second))
    x, y = (ranks - _divide((weights * ranks).sum(1, keepdims=True), total) for ranks in (x, y))
    spread = (weights * x * x).sum(1) * (weights * y * y).sum(1)
    return _divide((weights * x * y).sum(1), np.sqrt(np.where(spread > 1e-9, spread, 0)))


def classification(
    weights: Array, probabilities: Array, labels: NDArray[np.int64], positive: int | None = None
) -> Values:
    """Classification metrics; labels of -1 are left out.

    Args:
        weights: (r, N).
        probabilities: (N, K).
        labels: (N,).
        positive: the positive class; by default class 1 of two.

    Returns:
        The metrics of mtlkit.metrics.ClassificationMetrics, those of `reliability`, and for each class k against the
        rest (k, "sensitivity"), (k, "specificity"), (k, "precision"), (k, "f1") and (k, "auc").

    Example:
        >>> import numpy as np
        >>> from mtlkit.evaluation import classification
        >>> probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
        >>> found = classification(np.ones((1, 4)), probabilities, np.array([0, 0, 1, 1]))
        >>> found["accuracy"], found[1, "sensitivity"], found["auc"]
        (array([0.75]), array([0.5]), array([0.75]))
    """
    known = labels >= 0
    weights, probabilities, labels = weights[:, known], probabilities[known], labels[known]
    classes = probabilities.shape[1]
    predicted = probabilities.argmax(1) if len(labels) else labels
    total = weights.sum(1)
    right = (predicted == labels).astype(np.float64)
    is_true = (labels[:, None] == np.arange(classes)).astype(np.float64)  # (N, K)
    is_predicted = (predicted[:, None] == np.arange(classes)).astype(np.float64)
    hits, true, called = weights @ (is_true * is_predicted), weights @ is_true, weights @ is_predicted  # (r, K)
    scores = {
        "precision": _divide(hits, called),
        "recall": _divide(hits, true),
        "f1": _divide(2 * hits, true + called),
    }
    f1, occurs = scores["f1"], true + called > 0
    figures: Values = {"accuracy": _divide(weights @ right, total)}
    figures |= {f"{name}_macro": _divide(np.nan_to_num(score).sum(1), occurs.sum(1)) for name, score in scores.items()}
    figures["f1_weighted"] = _divide((np.nan_to_num(f1) * true).sum(1), total)
    if (found := positive_class(classes, positive)) is not None:
        figures |= {f"{name}_positive": score[:, found] for name, score in scores.items()}
    areas = [ranking(weights, probabilities[:, k], labels == k)[0] for k in range(classes)]
    judged = ~np.isnan(areas)
    figures["auc"] = areas[1] if classes == 2 else _divide(np.nansum(areas, 0), judged.sum(0))
    figures |= reliability(weights, probabilities, labels)
    rest = total[:, None]
    of_each = {
        "sensitivity": scores["recall"],
        "specificity": _divide(rest - true - called + hits, rest - true),
        "precision": scores["precision"],
        "f1": np.where(true > 0, f1, np.nan),
        "auc": np.stack(areas, 1),
    }
    figures |= {(k, name): value[:, k] for name, value in of_each.items() for k in range(classes)}
    return figures


def reliability(weights: Array, probabilities: Array, labels: NDArray[np.int64]) -> Values:
    """Reliability of probabilities (N, K), (r,) each; labels of -1 are left out.

    Returns:
        "calibration_error", the mean difference between confidence and accuracy over ten bins of confidence; "brier",
        the mean squared difference between the probabilities and the one-hot label, summed over the classes.

    Example:
        >>> import numpy as np
        >>> from mtlkit.evaluation import reliability
        >>> found = reliability(np.ones((1, 2)), np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0]))
        >>> {name: value.round(2).tolist() for name, value in found.items()}
        {'calibration_error': [0.35], 'brier': [0.37]}
    """
    known = labels >= 0
    weights, probabilities, labels = weights[:, known], probabilities[known], labels[known]
    is_true = labels[:, None] == np.arange(probabilities.shape[1])
    right = is_true[np.arange(len(labels)), probabilities.argmax(1)] if len(labels) else labels
    distances = ((probabilities - is_true) ** 2).sum(1)
    return {
        "calibration_error": _calibration_error(weights, probabilities, right.astype(np.float64)),
        "brier": _divide(weights @ distances, weights.sum(1)),
    }


def threshold_scores(weights: Array, called: NDArray[np.bool_], positive: NDArray[np.bool_]) -> Values:
    """Sensitivity, specificity and precision for given positive predictions (N,), (r,) each."""
    hits, true = weights @ (called & positive), weights @ positive
    return {
        "sensitivity": _divide(hits, true),
        "specificity": _divide(weights @ (~called & ~positive), weights @ ~positive),
        "precision": _divide(hits, weights @ called),
    }


def confidence_bins(confidence: Array) -> NDArray[np.int64]:
    """The bin, 0 to 9, of each confidence."""
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _calibration_error(weights: Array, probabilities: Array, right: Array) -> Array:
    if not len(right):
        return np.full(len(weights), np.nan)
    confidence = probabilities.max(1)
    member = (confidence_bins(confidence)[:, None] == np.arange(BINS)).astype(np.float64)  # (N, bins)
    gaps = weights @ (member * (right - confidence)[:, None])  # (r, bins)
    return _divide(np.abs(gaps).sum(1), weights.sum(1))
