"""Metrics and intervals, compared with mtlkit.metrics, scikit-learn and plain loops, and with missing values."""

import math
import time

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from mtlkit.evaluation import Figure, classification, intervals, ranking, risk_area, score_means, spearman
from mtlkit.evaluation.bootstrap import Ranked, confidence_bins, resampled
from mtlkit.metrics import ClassificationMetrics, failure_detection


def ones(count):
    return np.ones((1, count))


def answers(count, classes, seed=0, ties=False):
    """Informative probabilities in float32's precision, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=count)
    logits = generator.normal(size=(count, classes)) + np.eye(classes)[labels]
    logits = logits.round() if ties else logits
    return torch.tensor(logits).softmax(1).float().double().numpy(), labels


def of_metrics(probabilities, labels, classes, positive=None):
    metrics = ClassificationMetrics(classes, positive=positive)
    metrics.update(torch.tensor(probabilities), torch.tensor(labels))
    return {name: float(value) for name, value in metrics.compute().items()}


# --- the data of a score ----------------------------------------------------------------------------------------------


def repeated(weights: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
    """Columns with each row repeated by its count."""
    return [column.repeat(weights.astype(int)) for column in columns]


@pytest.mark.parametrize("digits", [1, 9])
def test_correlation_is_that_of_scipy(digits):
    generator = np.random.default_rng(0)
    first = generator.normal(size=50).round(digits)
    second = (first + generator.normal(size=50)).round(digits)
    weights = generator.integers(3, size=(4, 50)).astype(float)
    expected = [spearmanr(*repeated(row, first, second)).statistic for row in weights]
    assert spearman(weights, first, second) == pytest.approx(expected)
    first[:5], second[3:8] = np.nan, np.nan
    known = ~(np.isnan(first) | np.isnan(second))
    assert spearman(ones(50), first, second)[0] == pytest.approx(spearmanr(first[known], second[known]).statistic)
    assert np.isnan(spearman(ones(50), np.zeros(50), second)[0])
    assert np.isnan(spearman(ones(50), np.full(50, np.nan), second)[0])
    assert np.isnan(spearman(np.eye(50)[:1] * 3, first, second)[0])


@pytest.mark.parametrize("digits", [1, 9])
def test_risk_area_is_that_of_a_loop(digits):
    generator = np.random.default_rng(0)
    failed = generator.random(40) < 0.3
    scores = (generator.random(40) + 0.4 * failed).round(digits)
    weights = generator.integers(3, size=(3, 40)).astype(float)

    def by_hand(row: np.ndarray) -> float:
        score, wrong = repeated(row, scores, failed)
        return np.mean([wrong[score <= limit].mean() for limit in score])

    assert risk_area(weights, scores, failed) == pytest.approx([by_hand(row) for row in weights])
    assert risk_area(ones(40), np.zeros(40), failed)[0] == pytest.approx(failed.mean())
    holes = np.where(failed, np.nan, scores)
    assert risk_area(ones(40), holes, failed)[0] == 0
    assert np.isnan(risk_area(ones(40), np.full(40, np.nan), failed)[0])


# --- metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("ties", [False, True])
def test_classification_is_that_of_the_metrics(classes, ties):
    probabilities, labels = answers(80, classes, ties=ties)
    labels[:7] = -1
    found = classification(ones(80), probabilities, labels, positive=classes - 1)
    expected = of_metrics(probabilities, labels, classes, positive=classes - 1)
    assert set(expected) == {name for name in found if isinstance(name, str)} - {"calibration_error", "brier"} | {
        "images"
    }
    for name in set(expected) - {"images"}:
        assert found[name][0] == pytest.approx(expected[name], abs=1e-6), name


def test_absent_classes():
    """Class 2 never occurs but is predicted; class 3 does neither."""
    probabilities, labels = answers(60, 4, seed=1)
    labels %= 2
    probabilities[:, 3] = 0
    probabilities /= probabilities.sum(1, keepdims=True)
    found = classification(ones(60), probabilities, labels)
    expected = of_metrics(probabilities, labels, 4)
    for name in set(expected) - {"images"}:
        assert found[name][0] == pytest.approx(expected[name], abs=1e-6), name
    for k in (2, 3):
        assert math.isnan(found[k, "sensitivity"][0])
        assert math.isnan(found[k, "auc"][0])
        assert math.isnan(found[k, "f1"][0])
    assert math.isnan(found[3, "precision"][0])
    assert found[2, "precision"][0] == 0


def test_of_each_class_is_that_of_scikit_learn():
    probabilities, labels = answers(90, 3, seed=2)
    found = classification(ones(90), probabilities, labels)
    predicted = probabilities.argmax(1)
    assert found["accuracy"][0] == pytest.approx(accuracy_score(labels, predicted))
    for k in range(3):
        true, called = labels == k, predicted == k
        assert found[k, "sensitivity"][0] == pytest.approx(recall_score(true, called))
        assert found[k, "specificity"][0] == pytest.approx(recall_score(~true, ~called))
        assert found[k, "precision"][0] == pytest.approx(precision_score(true, called))
        assert found[k, "f1"][0] == pytest.approx(f1_score(true, called))
        assert found[k, "auc"][0] == pytest.approx(roc_auc_score(true, probabilities[:, k]))
    assert found["auc"][0] == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"))


def test_nothing_is_known():
    found = classification(ones(3), np.full((3, 2), 0.5), np.full(3, -1))
    assert all(np.isnan(value).all() for value in found.values())


def test_calibration_error_by_hand():
    """Two bins: confidence 0.95 and 1 of 2 right; confidence 0.65 and 2 of 2 right."""
    first = np.array([0.95, 0.95, 0.65, 0.65])
    probabilities = np.stack([first, 1 - first], 1)
    found = classification(ones(4), probabilities, np.array([0, 1, 0, 0]))
    assert found["calibration_error"][0] == pytest.approx((0.5 * 0.45) + (0.5 * 0.35))


@pytest.mark.parametrize("bin_", range(10))
def test_a_confidence_at_an_edge_is_of_the_bin_above(bin_):
    edge, above = bin_ / 10, (bin_ + 1) / 10
    assert confidence_bins(np.array([edge, edge + 0.05, above - 1e-9])).tolist() == [bin_] * 3
    assert confidence_bins(np.array([1.0])) == 9


@pytest.mark.parametrize("ties", [False, True])
def test_ranking_is_that_of_scikit_learn(ties):
    generator = np.random.default_rng(3)
    scores = generator.normal(size=70)
    scores = scores.round(0 if ties else 9)
    positive = generator.random(70) < 0.3
    area, average = ranking(ones(70), scores, positive)
    assert area[0] == pytest.approx(roc_auc_score(positive, scores))
    assert average[0] == pytest.approx(average_precision_score(positive, scores))
    expected = failure_detection(torch.tensor(scores), torch.tensor(positive))
    assert area[0] == pytest.approx(float(expected["auroc"]), abs=1e-6)
    assert average[0] == pytest.approx(float(expected["average_precision"]), abs=1e-6)


def test_weights_count_an_image_more_than_once():
    generator = np.random.default_rng(4)
    scores, positive = generator.normal(size=40).round(1), generator.random(40) < 0.4
    times = generator.integers(0, 4, size=40)
    area, average = ranking(times[None].astype(float), scores, positive)
    again = np.repeat(np.arange(40), times)
    assert area[0] == pytest.approx(roc_auc_score(positive[again], scores[again]))
    assert average[0] == pytest.approx(average_precision_score(positive[again], scores[again]))


def test_ranking_without_one_side_or_without_any():
    scores = np.array([0.1, 0.2, np.nan])
    for positive in ([True, True, False], [False, False, True]):
        area, average = ranking(ones(3), scores, np.array(positive))
        assert math.isnan(area[0])
        assert math.isnan(average[0])
    assert math.isnan(ranking(ones(1), np.array([np.nan]), np.array([True]))[0][0])


def test_means_leave_out_what_is_not_known():
    weights = np.array([[1.0, 1, 1], [2, 0, 1], [0, 0, 3]])
    (found,) = score_means(weights, {"iou": np.array([0.2, 0.6, np.nan])}).values()
    assert found[:2].tolist() == pytest.approx([0.4, 0.2])
    assert math.isnan(found[2])


# --- intervals --------------------------------------------------------------------------------------------------------


def test_intervals_are_those_of_a_plain_loop():
    """Patients are drawn one by one, and mtlkit.metrics computes the metrics of each sample."""
    probabilities, labels = answers(50, 3, seed=5)
    groups = [f"patient {i // 2}" for i in range(50)]
    found = intervals(lambda weights: classification(weights, probabilities, labels), groups, 40, seed=9)
    members = {name: [i for i in range(50) if groups[i] == name] for name in sorted(set(groups))}
    names = list(members)
    drawn = np.random.default_rng(9).integers(len(names), size=(40, len(names)))
    runs = []
    for row in drawn:
        chosen = [i for number in row for i in members[names[number]]]
        runs.append(of_metrics(probabilities[chosen], labels[chosen], 3))
    for name in ("accuracy", "f1_macro", "f1_weighted", "auc"):
        low, high = np.percentile([run[name] for run in runs], [2.5, 97.5])
        assert found[name].low == pytest.approx(low, abs=1e-6)
        assert found[name].high == pytest.approx(high, abs=1e-6)
        assert found[name].low <= found[name].value <= found[name].high


def test_portions_do_not_change_the_draws(monkeypatch):
    groups = [str(i) for i in range(30)]
    whole = np.concatenate(list(resampled(groups, 25, 1)))
    monkeypatch.setattr("mtlkit.evaluation.bootstrap.CELLS", 100)
    assert np.array_equal(np.concatenate(list(resampled(groups, 25, 1))), whole)
    assert (whole.sum(1) == 30).all()


def test_groups_are_drawn_whole():
    weights = np.concatenate(list(resampled(["a", "b", "a", "c"], 100, 0)))
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()


def test_coverage():
    """Of a hundred samples with a known mean, about 95 intervals contain it."""
    generator = np.random.default_rng(6)
    held = 0
    for seed in range(100):
        scores = {"iou": generator.beta(4, 2, size=80)}
        names = [str(i) for i in range(80)]
        figure = intervals(lambda weights, scores=scores: score_means(weights, scores), names, 300, seed)["iou"]
        held += figure.low <= 4 / 6 <= figure.high
    assert 87 <= held <= 100


def test_interval_of_a_mean_is_that_of_its_standard_error():
    scores = np.random.default_rng(7).normal(0.5, 0.1, size=400)
    names = [str(i) for i in range(400)]
    figure = intervals(lambda weights: score_means(weights, {"x": scores}), names, 4000)["x"]
    error = scores.std() / math.sqrt(400)
    assert (figure.high - figure.low) / 2 == pytest.approx(1.96 * error, rel=0.06)


def test_patients_of_many_images_widen_the_interval():
    """Four identical images of a patient count as one."""
    values = np.repeat(np.random.default_rng(8).random(40), 4)
    by_image = intervals(lambda w: score_means(w, {"x": values}), [str(i) for i in range(160)])["x"]
    by_patient = intervals(lambda w: score_means(w, {"x": values}), [str(i // 4) for i in range(160)])["x"]
    assert by_patient.high - by_patient.low == pytest.approx(2 * (by_image.high - by_image.low), rel=0.15)


def test_samples_that_define_nothing_are_left_out():
    """One malignant image among six: a third of the samples have none, and therefore no AUC."""
    probabilities, labels = answers(6, 2)
    labels[:] = [1, 0, 0, 0, 0, 0]
    figure = intervals(lambda w: classification(w, probabilities, labels), list("abcdef"), 200)["auc"]
    assert 0 <= figure.low <= figure.high <= 1


def test_without_samples_there_is_no_interval():
    figure = intervals(lambda w: score_means(w, {"x": np.array([0.25])}), ["a"], 0)["x"]
    assert figure.value == 0.25
    assert math.isnan(figure.low)
    assert str(figure) == "0.250"
    assert str(Figure(math.nan, math.nan, math.nan)) == "not defined"


def test_bad_input():
    with pytest.raises(ValueError, match="groups: expected at least one image, got none"):
        intervals(lambda w: {}, [])
    with pytest.raises(ValueError, match="samples: expected at least 0, got -1"):
        intervals(lambda w: {}, ["a"], -1)


@pytest.mark.slow
def test_ten_thousand_images_take_seconds():
    """All metrics of masks and classes, with 2,000 draws of 5,000 patients.

    `pytest -m slow -s tests/evaluation/test_bootstrap.py` prints the time.
    """
    generator = np.random.default_rng(0)
    count = 10_000
    groups = [f"patient {i // 2}" for i in range(count)]
    probabilities, labels = generator.dirichlet([1, 1, 1], count), generator.integers(3, size=count)
    scores = {str(i): generator.random(count) for i in range(10)}

    failed = generator.random(count) < 0.2
    ranked = {name: Ranked(values, failed) for name, values in scores.items()}

    def statistic(weights):
        found = score_means(weights, scores) | classification(weights, probabilities, labels, 1)
        for name, one in ranked.items():  # as scores that should predict failure
            found |= {(name, index): value for index, value in enumerate(one.figures(weights))}
        return found

    start = time.process_time()  # time of this process, which other programs do not increase
    found = intervals(statistic, groups, samples=2000)
    seconds = time.process_time() - start
    print(f"{len(found)} figures of {count:,} images: {seconds:.1f} s of the processor")
    assert seconds < 20
