"""Significance tests: compared with scipy, by counting pairs, and without any difference."""

import math

import numpy as np
import pytest
from scipy import stats

from mtlkit.evaluation.significance import delong, mcnemar, wilcoxon


def test_wilcoxon_is_that_of_scipy_without_images_that_have_no_score():
    rng = np.random.default_rng(0)
    first, second = rng.random(30), rng.random(30)
    first[3] = second[7] = math.nan
    known = ~np.isnan(first - second)
    assert wilcoxon(first, second) == pytest.approx(stats.wilcoxon(first[known], second[known]).pvalue)
    assert wilcoxon(first, first) == 1
    assert math.isnan(wilcoxon(np.full(3, np.nan), np.ones(3)))


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (5, 0), (3, 8)])
def test_mcnemar_counts_the_images_that_one_alone_gets_right(only_first, only_second):
    first = np.array([True] * 4 + [True] * only_first + [False] * only_second + [False] * 2)
    second = np.array([True] * 4 + [False] * only_first + [True] * only_second + [False] * 2)
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    assert mcnemar(first, second) == pytest.approx(min(1, 2 * tail) if n else 1)


@pytest.mark.parametrize("ties", [False, True])
def test_delong_is_that_of_all_pairs(ties):
    rng = np.random.default_rng(1)
    positive = rng.random(50) < 0.4
    scores = [rng.normal(positive * shift, 1) for shift in (1.2, 0.4)]
    scores = [np.round(s) if ties else s for s in scores]
    placed = []
    for s in scores:
        pairs = (s[positive][:, None] > s[~positive]) + 0.5 * (s[positive][:, None] == s[~positive])
        placed.append((pairs.mean(1), pairs.mean(0)))
    spread = np.cov([p for p, _ in placed]) / positive.sum() + np.cov([n for _, n in placed]) / (~positive).sum()
    z = (placed[0][0].mean() - placed[1][0].mean()) / np.sqrt([1, -1] @ spread @ [1, -1])
    assert delong(*scores, positive) == pytest.approx(2 * stats.norm.sf(abs(z)))


def test_delong_needs_two_of_each_kind():
    assert math.isnan(delong(np.arange(3.0), np.arange(3.0), np.array([True, False, False])))
