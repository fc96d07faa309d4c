"""Tests whether two networks differ on the same images, by masks, classes and areas under the ROC curve.

Sources: Wilcoxon, "Individual Comparisons by Ranking Methods" (1945); McNemar, "Note on the Sampling Error of the
Difference between Correlated Proportions" (1947), here exact; DeLong, DeLong and Clarke-Pearson, "Comparing the Areas
under Two or More Correlated Receiver Operating Characteristic Curves" (1988).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["delong", "mcnemar", "wilcoxon"]

Array = NDArray[np.float64]


def wilcoxon(first: Array, second: Array) -> float:
    """The p-value of Wilcoxon's signed-rank test for scores (N,) of the same images; NaN scores are left out.

    It is 1 if the two never differ, and NaN without images.

    Example:
        >>> import numpy as np
        >>> from mtlkit.evaluation.significance import wilcoxon
        >>> wilcoxon(np.array([0.5, 0.6, 0.7, 0.8, 0.9]), np.array([0.4, 0.4, 0.4, 0.4, 0.4]))
        0.0625
    """
    differences = first - second
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return np.nan
    if not differences.any():
        return 1.0
    result: Any = stats.wilcoxon(differences)
    return float(result.pvalue)


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """The p-value of McNemar's exact test of whether two networks are right equally often, (N,) of the same images.

    Example:
        >>> import numpy as np
        >>> from mtlkit.evaluation.significance import mcnemar
        >>> mcnemar(np.array([True] * 6 + [False]), np.array([False] * 6 + [False]))
        0.03125
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    if not len(first):
        return np.nan
    if not only_first + only_second:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def delong(first: Array, second: Array, positive: NDArray[np.bool_]) -> float:
    """The p-value of DeLong's test of whether two areas under the ROC curve are equal.

    Args:
        first: scores of one network, (N,).
        second: scores of the other network for the same images.
        positive: which images are positive, (N,).

    Returns:
        1 if the scores rank the images equally; NaN with fewer than two positives or two negatives.

    Example:
        >>> import numpy as np
        >>> from mtlkit.evaluation.significance import delong
        >>> positive = np.array([False, False, False, True, True, True])
        >>> scores = np.array([0.1, 0.2, 0.6, 0.5, 0.8, 0.9])
        >>> delong(scores, scores**2, positive)
        1.0
    """
    if min(positive.sum(), (~positive).sum()) < 2:
        return np.nan
    of_positives, of_negatives = zip(*(_placements(scores, positive) for scores in (first, second)), strict=True)
    spread = np.cov(of_positives) / positive.sum() + np.cov(of_negatives) / (~positive).sum()  # (2, 2)
    variance = spread[0, 0] + spread[1, 1] - 2 * spread[0, 1]
    difference = np.mean(of_positives[0]) - np.mean(of_positives[1])
    if variance <= 1e-12:
        return 1.0 if abs(difference) < 1e-12 else 0.0
    return float(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)))


def _placements(scores: Array, positive: NDArray[np.bool_]) -> tuple[Array, Array]:
    """For each positive the fraction of negatives below, for each negative that of positives above; ties count half."""
    ranks = stats.rankdata(scores)
    own = np.empty_like(ranks)
    for kind in (positive, ~positive):
        own[kind] = stats.rankdata(scores[kind])
    others = ranks - own  # number of the other kind below
    negatives, positives = (~positive).sum(), positive.sum()
    return others[positive] / negatives, 1 - others[~positive] / positives
