"""Metrics compared with torchmetrics and scikit-learn on random cases, and cases that those leave undefined."""

import math
import warnings

import pytest
import sklearn.metrics
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from torch.nn import functional
from torchmetrics.functional.classification import binary_jaccard_index, multiclass_auroc
from torchmetrics.functional.segmentation import dice_score

from mtlkit.metrics import (
    ClassificationMetrics,
    SegmentationMetrics,
    boundary_scores,
    failure_detection,
    segmentation_scores,
)

NAN = float("nan")


def random_masks(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and masks of many sizes; empty: the first true mask, the second prediction, both of the third."""
    target = (torch.rand(count, 1, 12, 15) < torch.linspace(0.05, 0.9, count)[:, None, None, None]).float()
    probabilities = (0.6 * target + 0.5 * torch.rand(count, 1, 12, 15)).clamp(0, 1)
    target[0] = 0
    probabilities[1] = 0.3
    target[2], probabilities[2] = 0, 0.1
    return probabilities, target


# --- segmentation -----------------------------------------------------------------------------------------------------


def test_segmentation_scores_are_those_of_sklearn():
    probabilities, target = random_masks(12)
    scores = segmentation_scores(probabilities, target)
    oracles = {
        "iou": sklearn.metrics.jaccard_score,
        "dice": sklearn.metrics.f1_score,
        "sensitivity": sklearn.metrics.recall_score,
        "precision": sklearn.metrics.precision_score,
    }
    for name, oracle in oracles.items():
        for i in range(12):
            true, predicted = target[i].flatten().bool(), probabilities[i].flatten() >= 0.5
            options = {"zero_division": NAN} if name == "precision" else {}
            expected = oracle(true, predicted, **options) if true.any() else NAN
            assert scores[name][i].item() == pytest.approx(expected, abs=1e-6, nan_ok=True), (name, i)


def test_segmentation_scores_are_those_of_torchmetrics():
    probabilities, target = random_masks(9)
    scores = segmentation_scores(probabilities[3:], target[3:])
    predicted = (probabilities[3:] >= 0.5).long()
    iou = [binary_jaccard_index(p, t.long()) for p, t in zip(predicted, target[3:], strict=True)]
    torch.testing.assert_close(scores["iou"], torch.stack(iou))
    dice = [dice_score(p[None], t[None].long(), num_classes=1) for p, t in zip(predicted, target[3:], strict=True)]
    torch.testing.assert_close(scores["dice"], torch.stack(dice).flatten())


@pytest.mark.parametrize(
    ("empty", "expected"),
    [("exclude", [NAN, NAN, 0.0, NAN]), ("score", [1.0, 0.0, 0.0, NAN])],
)
def test_empty_masks(empty, expected):
    blank, some = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    some[0, 0] = 1
    # nothing there and nothing found; nothing there but something found; something there but nothing found
    target, found = torch.stack([blank, blank, some]), torch.stack([blank, some, blank])
    scores = segmentation_scores(found, target, empty=empty)
    for name in ("iou", "dice", "sensitivity"):
        torch.testing.assert_close(scores[name], torch.tensor(expected[:3]), equal_nan=True)
    # precision of the third: nothing was predicted
    torch.testing.assert_close(scores["precision"], torch.tensor([*expected[:2], expected[3]]), equal_nan=True)


def test_means_do_not_depend_on_batches():
    probabilities, target = random_masks(11)
    whole, parts = SegmentationMetrics(), SegmentationMetrics()
    whole.update(probabilities, target)
    for part in (slice(0, 1), slice(1, 7), slice(7, 7), slice(7, 11)):
        parts.update(probabilities[part], target[part])
    assert {name: v.item() for name, v in whole.compute().items()} == {n: v.item() for n, v in parts.compute().items()}
    values, scores = whole.compute(), segmentation_scores(probabilities, target)
    assert (int(values["images"]), int(values["empty"])) == (11, 2)
    known = ~scores["iou"].isnan()
    assert known.sum() == 9
    torch.testing.assert_close(values["iou"], scores["iou"][known].mean())
    for name, score in whole.scores().items():
        assert torch.equal(score.nan_to_num(-1), scores[name].nan_to_num(-1))


def test_threshold():
    probabilities, target = torch.tensor([[[[0.2, 0.5, 0.7]]]]), torch.tensor([[[[1, 1, 1]]]])
    for threshold, found in ((0.1, 3), (0.5, 2), (0.6, 1)):
        scores = segmentation_scores(probabilities, target, threshold=threshold)
        assert scores["sensitivity"].item() == pytest.approx(found / 3)


def test_nothing_yet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchmetrics warns about compute before update
        values = SegmentationMetrics().compute() | ClassificationMetrics(3).compute()
        of_two = ClassificationMetrics(2).compute()
    assert all(math.isnan(values[name]) for name in ("iou", "dice", "precision", "accuracy", "f1_macro", "auc"))
    assert values["images"] == 0
    assert math.isnan(of_two["f1_positive"])
    assert not ClassificationMetrics(3).confusion().any()


# --- boundaries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [None, (0.3, 0.7)])
def test_boundary_scores_are_those_of_monai(spacing):
    smooth = functional.avg_pool2d(torch.rand(8, 1, 41, 29), 9, 1, 4, count_include_pad=False)
    masks = (smooth > 0.5).float()
    masks[0, :, :, :3] = 1  # at an edge of the image
    masks[3] = 1
    predicted, true = masks.split(4)
    found = boundary_scores(predicted, true, spacing=spacing, tolerance=1.5)
    options = {"include_background": True, "spacing": spacing}
    monai = {
        "hd95": compute_hausdorff_distance(predicted, true, percentile=95, **options),
        "assd": compute_average_surface_distance(predicted, true, symmetric=True, **options),
        "surface_dice": compute_surface_dice(predicted, true, [1.5], **options),
    }
    for name, expected in monai.items():
        torch.testing.assert_close(found[name], expected[:, 0].float(), msg=lambda words, name=name: f"{name}: {words}")


def test_boundary_scores_are_those_of_all_pairs_of_pixels():
    predicted, true = torch.zeros(2, 1, 9, 8)
    predicted[:, 1:5, 0:4], true[:, 4:9, 2:7] = 1, 1
    steps = torch.tensor([2.0, 0.5])
    edges = []
    for mask in (predicted[0], true[0]):
        outer = functional.pad(mask, (1, 1, 1, 1))
        inside = outer[:-2, 1:-1] * outer[2:, 1:-1] * outer[1:-1, :-2] * outer[1:-1, 2:]
        edges.append((mask * (1 - inside)).nonzero() * steps)
    pairs = torch.cdist(*edges)
    ways = pairs.min(1).values, pairs.min(0).values
    found = boundary_scores(predicted[None], true[None], spacing=steps, tolerance=3)
    assert found["hd95"].item() == pytest.approx(max(way.quantile(0.95).item() for way in ways))
    assert found["assd"].item() == pytest.approx(torch.cat(ways).mean().item())
    assert found["surface_dice"].item() == pytest.approx((torch.cat(ways) <= 3).float().mean().item())


def test_boundary_scores_of_empty_masks():
    lesion, nothing = torch.zeros(2, 1, 8, 8)
    lesion[:, 2:5, 2:5] = 1
    predicted, true = torch.stack([lesion, nothing, nothing, lesion]), torch.stack([lesion, lesion, nothing, nothing])
    expected = {"hd95": [0.0, NAN, NAN, NAN], "assd": [0.0, NAN, NAN, NAN], "surface_dice": [1.0, 0.0, NAN, NAN]}
    for name, value in boundary_scores(predicted, true).items():
        torch.testing.assert_close(value, torch.tensor(expected[name]), equal_nan=True)
    assert boundary_scores(predicted[:0], true[:0])["hd95"].shape == (0,)


def test_each_image_has_its_own_spacing():
    lesion = torch.zeros(3, 1, 16, 16)
    lesion[..., 4:8, 4:8] = 1
    spacing = torch.tensor([[1.0, 1.0], [0.25, 9.0], [NAN, NAN]])
    found = boundary_scores(lesion.roll(4, dims=2), lesion, spacing=spacing)
    torch.testing.assert_close(found["hd95"], torch.tensor([4.0, 1.0, NAN]), equal_nan=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spacing": (0.0, 1.0)}, "spacing: expected numbers above 0"),
        ({"spacing": (1.0, math.inf)}, "spacing: expected numbers above 0"),
        ({"spacing": (1.0,)}, r"spacing: expected two numbers, or shape \(2, 2\), got \(1,\)"),
        ({"tolerance": -1}, "tolerance: expected at least 0, got -1"),
        ({"tolerance": NAN}, "tolerance: expected at least 0, got nan"),
        ({"threshold": 1}, "threshold: expected a number between 0 and 1"),
    ],
)
def test_boundary_scores_refuse(options, words):
    with pytest.raises(ValueError, match=words):
        boundary_scores(torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4), **options)


# --- classification ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "positive", "found"), [(2, None, 1), (2, 0, 0), (3, None, None), (5, 3, 3)])
def test_classification_is_that_of_sklearn(classes, positive, found):
    probabilities = (2 * torch.randn(60, classes)).softmax(1)
    labels = torch.randint(-1, classes, (60,))
    metrics = ClassificationMetrics(classes, positive=positive)
    for part in (slice(0, 7), slice(7, 60)):
        metrics.update(probabilities[part], labels[part])
    known = labels >= 0
    true, p = labels[known].numpy(), probabilities[known].numpy()
    scores = p[:, 1] if classes == 2 else p
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(true, p.argmax(1)),
        "precision_macro": sklearn.metrics.precision_score(true, p.argmax(1), average="macro"),
        "recall_macro": sklearn.metrics.recall_score(true, p.argmax(1), average="macro"),
        "f1_macro": sklearn.metrics.f1_score(true, p.argmax(1), average="macro"),
        "f1_weighted": sklearn.metrics.f1_score(true, p.argmax(1), average="weighted"),
        "auc": sklearn.metrics.roc_auc_score(true, scores, multi_class="ovr", average="macro"),
        "images": known.sum().item(),
    }
    if found is not None:
        of_one = {"labels": [found], "average": "macro"}
        expected |= {
            "precision_positive": sklearn.metrics.precision_score(true, p.argmax(1), **of_one),
            "recall_positive": sklearn.metrics.recall_score(true, p.argmax(1), **of_one),
            "f1_positive": sklearn.metrics.f1_score(true, p.argmax(1), **of_one),
        }
    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(expected, abs=1e-6)
    assert metrics.confusion().tolist() == sklearn.metrics.confusion_matrix(true, p.argmax(1)).tolist()


def test_a_positive_class_that_there_is_not():
    with pytest.raises(ValueError, match="positive: expected a class from 0 to 2, got 3"):
        ClassificationMetrics(3, positive=3)


def test_auc_is_that_of_torchmetrics():
    probabilities, labels = torch.randn(40, 4).softmax(1), torch.arange(40) % 4
    metrics = ClassificationMetrics(4)
    metrics.update(probabilities, labels)
    torch.testing.assert_close(metrics.compute()["auc"], multiclass_auroc(probabilities, labels, 4))


def test_a_class_without_example_is_left_out_of_the_auc():
    probabilities = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]])
    metrics = ClassificationMetrics(3)
    metrics.update(probabilities, torch.tensor([0, 0, 1, 1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.compute()["auc"] == 1
    metrics.reset()
    metrics.update(probabilities, torch.tensor([1, 1, 1, 1]))
    assert math.isnan(metrics.compute()["auc"])


# --- failure detection ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-7, 300.0])
def test_failure_detection_is_that_of_sklearn(scale):
    scores = scale * torch.randn(80).round(decimals=1)  # with ties
    failed = torch.rand(80) < torch.sigmoid(scores / scale)
    scores[5] = NAN
    known = ~scores.isnan()
    values = failure_detection(scores, failed)
    true, s = failed[known].numpy(), scores[known].numpy()
    assert values["auroc"].item() == pytest.approx(sklearn.metrics.roc_auc_score(true, s), abs=1e-6)
    expected = sklearn.metrics.average_precision_score(true, s)
    assert values["average_precision"].item() == pytest.approx(expected, abs=1e-6)
    assert values["failures"] == true.sum()


@pytest.mark.parametrize("failed", [[True, True], [False, False], []])
def test_failure_detection_without_contrast(failed):
    values = failure_detection(torch.rand(len(failed)), torch.tensor(failed, dtype=torch.bool))
    assert math.isnan(values["auroc"])
    assert math.isnan(values["average_precision"])
    assert values["failures"] == sum(failed)


def test_a_constant_score_is_chance():
    values = failure_detection(torch.full((4,), 0.3), torch.tensor([True, False, False, False]))
    assert values["auroc"] == 0.5
    assert values["average_precision"] == 0.25


# --- bad input --------------------------------------------------------------------------------------------------------

P, T = torch.rand(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: segmentation_scores(P - 3, T),
            ValueError,
            r"probabilities: expected probabilities in \[0, 1\], got -",
        ),
        (lambda: segmentation_scores(P * NAN, T), ValueError, r"probabilities: expected probabilities in \[0, 1\]"),
        (lambda: segmentation_scores(P[0], T[0]), ValueError, "probabilities: expected 4 dimensions, got 3"),
        (lambda: segmentation_scores(P.repeat(1, 2, 1, 1), T), ValueError, r"expected shape \(B, 1, H, W\), got"),
        (lambda: segmentation_scores(P, T[:1]), ValueError, r"target: expected shape \(2, 1, 4, 4\) as in prob"),
        (lambda: segmentation_scores(T.int(), T), TypeError, "probabilities: expected a floating-point tensor"),
        (lambda: segmentation_scores(P, T, empty="zero"), ValueError, "empty: expected 'exclude' or 'score', got 'ze"),
        (lambda: SegmentationMetrics(threshold=1), ValueError, "threshold: expected a number between 0 and 1, got 1"),
        (lambda: ClassificationMetrics(1), ValueError, "num_classes: expected at least 2, got 1"),
        (
            lambda: ClassificationMetrics(3).update(torch.rand(2, 2), T[:, 0, 0, 0]),
            ValueError,
            r"expected shape \(B, 3",
        ),
        (
            lambda: ClassificationMetrics(2).update(torch.rand(2, 2), torch.tensor([0, 2])),
            ValueError,
            "labels: expected 0 to 1, got 2",
        ),
        (
            lambda: ClassificationMetrics(2).update(torch.rand(2, 2), torch.tensor([0])),
            ValueError,
            r"labels: expected shape \(2,\) as in the images, got \(1,\)",
        ),
        (lambda: failure_detection(torch.rand(2), torch.ones(2)), TypeError, "failed: expected a bool tensor, got"),
        (lambda: failure_detection(torch.rand(2), torch.ones(3) > 0), ValueError, r"failed: expected shape \(2,\)"),
        (lambda: failure_detection(torch.ones(2).int(), torch.ones(2) > 0), TypeError, "scores: expected a floating"),
        (lambda: failure_detection(P, P > 0), ValueError, r"scores: expected shape \(N,\), got \(2, 1, 4, 4\)"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
