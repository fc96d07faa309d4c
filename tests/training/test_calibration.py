"""Temperatures and thresholds: recovered where they are known, written by a run, and used when a run is opened."""

import json

import numpy as np
import pytest
import torch
from scipy.special import softmax as scipy_softmax

from mtlkit._probabilities import softmax
from mtlkit.data import DataError
from mtlkit.training import load_run, train
from mtlkit.training.calibration import Calibration, fit_calibration, read_calibration


def drawn(temperature: float, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their probabilities at a temperature."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((count, 3))
    shares = scipy_softmax(logits / temperature, axis=1)
    return logits, (rng.random((count, 1)) > shares.cumsum(1)).sum(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_found_again(temperature):
    logits, labels = drawn(temperature)
    found = fit_calibration(logits, labels)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert (found.images, found.thresholds) == (20_000, {})
    np.testing.assert_allclose(softmax(logits, 2.0), scipy_softmax(logits / 2, axis=1), rtol=1e-12)


def test_what_is_all_right_keeps_its_temperature_in_bounds():
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert fit_calibration(logits, np.array([0, 1])).temperature == pytest.approx(0.1, rel=1e-3)
    assert fit_calibration(logits, np.array([1, 0])).temperature == pytest.approx(10, rel=1e-3)


def test_unknown_labels_count_for_nothing():
    logits, labels = drawn(2.0, 500)
    known = fit_calibration(logits[:400], labels[:400])
    assert fit_calibration(logits, np.where(np.arange(500) < 400, labels, -1)) == known
    assert fit_calibration(logits, np.full(500, -1)) == Calibration()


def test_thresholds_by_all_that_there_are():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 200)
    margins = labels + rng.standard_normal(200)
    found = fit_calibration(np.stack([np.zeros(200), margins], 1), labels, positive=1)
    scores = softmax(np.stack([np.zeros(200), margins], 1), found.temperature)[:, 1]

    def sums(threshold: float) -> tuple[float, float]:
        return (scores[labels == 1] >= threshold).mean(), (scores[labels == 0] < threshold).mean()

    every = [sums(threshold) for threshold in np.append(scores, 1.0)]
    assert sum(sums(found.thresholds["youden"])) == pytest.approx(max(map(sum, every)))
    sensitivity, specificity = sums(found.thresholds["sensitivity_95"])
    assert sensitivity >= 0.95
    assert specificity == max(spec for sens, spec in every if sens >= 0.95)
    assert fit_calibration(np.zeros((4, 2)), np.ones(4, int), positive=1).thresholds == {}  # only one class


@pytest.fixture(scope="module")
def run(tmp_path_factory, ultrasound, small):
    out = tmp_path_factory.mktemp("calibration") / "run"
    train(small.change({"stopping": {"epochs": 1}}), ultrasound, out, progress=False)
    return out


def test_a_run_is_calibrated_on_its_validation_part(run):
    opened = load_run(run)
    bare = opened.uncalibrated()
    records = opened.open_data().subset(opened.split.val).records
    logits, labels, shares = [], [], []
    for batch in opened.loader(records):
        logits.append(bare.predict(batch)["class"].log())
        shares.append(opened.predict(batch)["class"])
        labels.append(batch["label"])
    logits, labels = torch.cat(logits).double().numpy(), torch.cat(labels).numpy()
    expected = fit_calibration(logits, labels, opened.config.data.positive_index)
    found = opened.calibration["class"]
    assert found.temperature == pytest.approx(expected.temperature, rel=1e-3)
    assert found.images == len(records)
    np.testing.assert_allclose(torch.cat(shares), softmax(logits, found.temperature), rtol=1e-4)


def test_a_run_of_an_earlier_version_has_a_temperature_of_1(run, tmp_path):
    assert read_calibration(tmp_path / "calibration.json") == {}
    assert load_run(run).uncalibrated().temperature("class") == 1.0


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "calibration.json").write_text(json.dumps({"class": {"temperature": "hot", "images": 3}}))
    with pytest.raises(DataError, match=r"calibration.json: .*class.thresholds is missing"):
        read_calibration(tmp_path / "calibration.json")
