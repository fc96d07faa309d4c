"""The papers' metrics: segmentation per image, classification, and how well a score predicts failure.

Needs torchmetrics (the extra `train`), which counts, ranks and gathers across processes. This module adds the treatment
of images without lesion and of classes without examples.

For an image with true and predicted pixels counted as TP, FP, FN:

    IoU = TP / (TP + FP + FN)        Dice = 2 TP / (2 TP + FP + FN)
    sensitivity = TP / (TP + FN)     precision = TP / (TP + FP)

Source: the published evaluation of MBDI and BTI-Net (arXiv 2603.01295, 2606.29102): means over the images whose true
mask is not empty, at threshold 0.5; failure is IoU below 0.5, or a wrong class.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)
from torchmetrics.utilities import dim_zero_cat

__all__ = [
    "ClassificationMetrics",
    "SegmentationMetrics",
    "boundary_scores",
    "failure_detection",
    "positive_class",
    "segmentation_scores",
]

POLICIES = ("exclude", "score")
SCORES = ("iou", "dice", "sensitivity", "precision")
BOUNDARY_SCORES = ("hd95", "assd", "surface_dice")

# --- checks -----------------------------------------------------------------------------------------------------------


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise ValueError(f"threshold: expected a number between 0 and 1, got {threshold!r}")


def _check_policy(empty: str) -> None:
    if empty not in POLICIES:
        raise ValueError(f"empty: expected 'exclude' or 'score', got {empty!r}")


def _check_same(name: str, value: Tensor, like: str, shape: torch.Size) -> None:
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)} as in {like}, got {tuple(value.shape)}")


def _check_probabilities(name: str, value: Tensor, dims: int) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected a floating-point tensor, got {kind}")
    if value.dim() != dims:
        raise ValueError(f"{name}: expected {dims} dimensions, got {value.dim()} with shape {tuple(value.shape)}")
    if value.numel() and not ((value >= 0) & (value <= 1)).all():
        low, high = value.min().item(), value.max().item()
        raise ValueError(
            f"{name}: expected probabilities in [0, 1], got {low:.4g} to {high:.4g}; logits need a sigmoid"
        )


# --- segmentation -----------------------------------------------------------------------------------------------------


def _scores(counts: Tensor, empty: str) -> dict[str, Tensor]:
    """Scores (N,) of counts (N, 3) of TP, FP and FN."""
    tp, fp, fn = counts.double().unbind(1)
    no_lesion = tp + fn == 0
    nan = torch.full_like(tp, float("nan"))
    of_empty = (
        nan if empty == "exclude" else (fp == 0).double()
    )  # an empty prediction is correct, anything else is wrong
    values = {  # 0 / 0 is NaN
        "iou": tp / (tp + fp + fn),
        "dice": 2 * tp / (2 * tp + fp + fn),
        "sensitivity": tp / (tp + fn),
        "precision": tp / (tp + fp),
    }
    return {name: torch.where(no_lesion, of_empty, value).float() for name, value in values.items()}


def _masks(probabilities: Tensor, target: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The predicted and true masks, (B, H, W), bool."""
    _check_probabilities("probabilities", probabilities, 4)
    if probabilities.shape[1] != 1 or 0 in probabilities.shape[1:]:
        raise ValueError(f"probabilities: expected shape (B, 1, H, W), got {tuple(probabilities.shape)}")
    _check_same("target", target, "probabilities", probabilities.shape)
    return (probabilities >= threshold).squeeze(1), (target > 0.5).squeeze(1)


def _counts(probabilities: Tensor, target: Tensor, threshold: float) -> Tensor:
    """TP, FP and FN of each image, (B, 3)."""
    # torchmetrics' samplewise counts lose the batch dimension of a single image
    predicted, true = (mask.flatten(1) for mask in _masks(probabilities, target, threshold))  # (B, H W)
    return torch.stack([predicted & true, predicted & ~true, ~predicted & true]).sum(2).T  # (B, 3)


def segmentation_scores(
    probabilities: Tensor, target: Tensor, *, threshold: float = 0.5, empty: str = "exclude"
) -> dict[str, Tensor]:
    """IoU, Dice, sensitivity and precision of each image.

    Args:
        probabilities: (B, 1, H, W), in [0, 1].
        target: (B, 1, H, W); above 0.5 is lesion.
        threshold: pixels with at least this probability are predicted as lesion.
        empty: score of an image without lesion. "exclude", as in the papers: NaN, so that means exclude it; "score": 1
            if nothing is predicted, otherwise 0.

    Returns:
        "iou", "dice", "sensitivity" and "precision", each (B,), float32. If there is a lesion and nothing
                is predicted, precision is NaN and the others are 0.

    Raises:
        TypeError, ValueError: wrong dtype, shape, range or option.

    Example:
        >>> import torch
        >>> from mtlkit.metrics import segmentation_scores
        >>> lesion = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
        >>> segmentation_scores(torch.tensor([[[[0.9, 0.2, 0.8, 0.1]]]]), lesion)["dice"]
        tensor([0.5000])
    """
    _check_threshold(threshold)
    _check_policy(empty)
    return _scores(_counts(probabilities, target, threshold), empty)


# --- boundaries -------------------------------------------------------------------------------------------------------


def boundary_scores(
    probabilities: Tensor,
    target: Tensor,
    *,
    spacing: Tensor | Sequence[float] | None = None,
    tolerance: float = 2.0,
    threshold: float = 0.5,
) -> dict[str, Tensor]:
    """Distances between the boundaries of predicted and true masks, for each image.

    The boundary of a mask consists of its pixels with one of their four neighbours, or the edge of the image, outside
    of the mask. Distances are from each pixel of one boundary to the nearest pixel of the other, in both directions.

        hd95          the 95th percentile of the distances, in the direction in which it is larger
        assd          the mean of all distances in both directions
        surface_dice  the fraction of both boundaries' pixels whose distance is at most the tolerance

    The results equal MONAI's; scipy's distance transform computes the distances.

    Args:
        probabilities: (B, 1, H, W), in [0, 1].
        target: (B, 1, H, W); above 0.5 is lesion.
        spacing: spacing of rows and columns, two numbers or (B, 2), in mm for distances in mm. By default distances are
            in pixels.
        tolerance: tolerance of surface_dice, in the unit of the distances.
        threshold: pixels with at least this probability are predicted as lesion.

    Returns:
        "hd95", "assd" and "surface_dice", each (B,), float32. An image without lesion has NaN, as in
        `segmentation_scores`. If there is a lesion and nothing is predicted, hd95 and assd are NaN and surface_dice is
        0. All are NaN if a spacing is NaN.

    Raises:
        TypeError, ValueError: wrong dtype, shape, range or option.

    Source: Nikolov et al., arXiv 1809.04430 (surface Dice).

    Example:
        >>> import torch
        >>> from mtlkit.metrics import boundary_scores
        >>> lesion = torch.zeros(1, 1, 32, 32)
        >>> lesion[..., 8:24, 8:24] = 1
        >>> found = boundary_scores(lesion.roll(3, dims=2), lesion, spacing=(0.5, 0.5), tolerance=1)
        >>> float(found["hd95"]), round(float(found["surface_dice"]), 3)
        (1.5, 0.567)
    """
    _check_threshold(threshold)
    if not tolerance >= 0:
        raise ValueError(f"tolerance: expected at least 0, got {tolerance!r}")
    predicted, true = (mask.cpu().numpy() for mask in _masks(probabilities, target, threshold))
    steps = torch.ones(2) if spacing is None else torch.as_tensor(spacing, dtype=torch.float64).cpu()
    if steps.shape not in ((2,), (len(true), 2)):
        raise ValueError(f"spacing: expected two numbers, or shape ({len(true)}, 2), got {tuple(steps.shape)}")
    if (steps <= 0).any() or steps.isinf().any():
        raise ValueError(f"spacing: expected numbers above 0, got {steps.min().item():g} to {steps.max().item():g}")
    rows = [
        _boundary_scores(a, b, step, tolerance)
        for a, b, step in zip(predicted, true, steps.expand(len(true), 2).numpy(), strict=True)
    ]
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, len(BOUNDARY_SCORES))
    return dict(zip(BOUNDARY_SCORES, values.unbind(1), strict=True))


def _boundary_scores(predicted: np.ndarray, true: np.ndarray, step: np.ndarray, tolerance: float) -> Sequence[float]:
    if not true.any() or np.isnan(step).any():
        return float("nan"), float("nan"), float("nan")
    if not predicted.any():
        return float("nan"), float("nan"), 0.0
    lesion = np.argwhere(predicted | true)
    (top, left), (bottom, right) = (
        lesion.min(0),
        lesion.max(0) + 1,
    )  # distances inside this box equal those in the image
    masks = [mask[top:bottom, left:right] for mask in (predicted, true)]
    edges = [mask > np.asarray(ndimage.binary_erosion(mask)) for mask in masks]
    ways = [  # from the pixels of one edge to the other
        np.asarray(ndimage.distance_transform_edt(~other, sampling=step))[edge] for edge, other in (edges, edges[::-1])
    ]
    both = np.concatenate(ways)
    return max(np.percentile(way, 95) for way in ways), both.mean(), (both <= tolerance).mean()


class SegmentationMetrics(Metric):
    """Mean IoU, Dice, sensitivity and precision over images, accumulated over batches and processes.

    Args:
        threshold: pixels with at least this probability are predicted as lesion.
        empty: "exclude", as in the papers, leaves images without lesion out of the means and counts them; "score"
            scores them 1 if nothing is predicted, otherwise 0. Precision is averaged over images with a predicted
            lesion.

    `compute` returns the means ("iou", "dice", "sensitivity", "precision"; NaN without images), "images", the number of
    images, and "empty", the number without lesion. `scores` returns the scores of each image.

    Example:
        >>> import torch
        >>> from mtlkit.metrics import SegmentationMetrics
        >>> metrics = SegmentationMetrics()
        >>> mask = torch.zeros(2, 1, 4, 4)
        >>> mask[0, :, :2] = 1
        >>> metrics.update(0.8 * mask + 0.1, mask)
        >>> values = metrics.compute()
        >>> float(values["iou"]), int(values["images"]), int(values["empty"])
        (1.0, 2, 1)
    """

    full_state_update = False
    higher_is_better = True
    counts: list[Tensor]

    def __init__(self, threshold: float = 0.5, empty: str = "exclude") -> None:
        super().__init__()
        _check_threshold(threshold)
        _check_policy(empty)
        self.threshold, self.empty = threshold, empty
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Adds a batch: both (B, 1, H, W)."""
        self.counts.append(_counts(probabilities, target, self.threshold))

    def scores(self) -> dict[str, Tensor]:
        """The scores of each image so far, in the order of the updates."""
        counts = dim_zero_cat(self.counts) if len(self.counts) else torch.zeros(0, 3)
        return _scores(counts, self.empty)

    def compute(self) -> dict[str, Tensor]:
        """The means and the counts of images."""
        values = {name: value.nanmean() for name, value in self.scores().items()}
        counts = dim_zero_cat(self.counts) if len(self.counts) else torch.zeros(0, 3)
        no_lesion = counts[:, 0] + counts[:, 2] == 0
        return values | {"images": torch.tensor(len(counts)), "empty": no_lesion.sum()}


# --- classification ---------------------------------------------------------------------------------------------------


def positive_class(num_classes: int, named: int | None = None) -> int | None:
    """The positive class: the given one, class 1 of two, or none.

    Example:
        >>> from mtlkit.metrics import positive_class
        >>> positive_class(2), positive_class(3), positive_class(3, 2)
        (1, None, 2)
    """
    return named if named is not None else 1 if num_classes == 2 else None


class ClassificationMetrics(Metric):
    """Accuracy, precision, recall, F1, area under the ROC curve, and the confusion matrix.

    Args:
        num_classes: K, at least 2.
        ignore_index: label of unlabelled images, which are left out.
        positive: class for "precision_positive", "recall_positive" and "f1_positive", against the rest. By default
            class 1 of two; with more classes there are no such metrics by default.

    `compute` returns "accuracy"; "precision_macro", "recall_macro" and "f1_macro", means over the classes that occur or
    are predicted; "f1_weighted", weighted by class frequency; the three metrics of the positive class; "auc"; and
    "images", the number of labelled images. With two classes "auc" is for class 1; otherwise it is the mean over each
    class against the rest, for classes with both positives and negatives. Undefined values are NaN. `confusion` returns
    the matrix, with the true classes as rows.

    Example:
        >>> import torch
        >>> from mtlkit.metrics import ClassificationMetrics
        >>> metrics = ClassificationMetrics(num_classes=2)
        >>> metrics.update(torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]), torch.tensor([0, 1, -1]))
        >>> values = metrics.compute()
        >>> float(values["accuracy"]), float(values["f1_positive"]), int(values["images"])
        (1.0, 1.0, 2)
    """

    full_state_update = False
    higher_is_better = True
    probabilities: list[Tensor]
    labels: list[Tensor]

    def __init__(self, num_classes: int, ignore_index: int = -1, positive: int | None = None) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes: expected at least 2, got {num_classes!r}")
        if positive is not None and not 0 <= positive < num_classes:
            raise ValueError(f"positive: expected a class from 0 to {num_classes - 1}, got {positive!r}")
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.positive = positive_class(num_classes, positive)
        self.add_state("probabilities", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds a batch: class probabilities (B, K) and labels (B,)."""
        _check_probabilities("probabilities", probabilities, 2)
        if probabilities.shape[1] != self.num_classes:
            raise ValueError(f"probabilities: expected shape (B, {self.num_classes}), got {tuple(probabilities.shape)}")
        _check_same("labels", labels, "the images", probabilities.shape[:1])
        known = labels != self.ignore_index
        wrong = known & ((labels < 0) | (labels >= self.num_classes))
        if wrong.any():
            raise ValueError(f"labels: expected 0 to {self.num_classes - 1}, got {labels[wrong][0].item()}")
        self.probabilities.append(probabilities[known].float())
        self.labels.append(labels[known].long())

    def _all(self) -> tuple[Tensor, Tensor]:
        if not len(self.labels):
            return torch.zeros(0, self.num_classes), torch.zeros(0, dtype=torch.int64)
        return dim_zero_cat(self.probabilities), dim_zero_cat(self.labels)

    def confusion(self) -> Tensor:
        """(K, K), int64: number of images by true class (row) and predicted class (column)."""
        probabilities, labels = self._all()
        if not len(labels):
            return torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)
        return multiclass_confusion_matrix(probabilities.argmax(1), labels, self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """The metrics over all labelled images."""
        probabilities, labels = self._all()
        K, predicted = self.num_classes, probabilities.argmax(1)
        of_all = {"precision": multiclass_precision, "recall": multiclass_recall, "f1": multiclass_f1_score}
        names = ["accuracy", *(f"{name}_macro" for name in of_all), "f1_weighted", "auc"]
        if not len(labels):
            names += [f"{name}_positive" for name in of_all] if self.positive is not None else []
            return dict.fromkeys(names, torch.tensor(float("nan"))) | {"images": torch.tensor(0)}
        figures = {
            "accuracy": multiclass_accuracy(predicted, labels, K, average="micro"),
            **{f"{name}_macro": score(predicted, labels, K, average="macro") for name, score in of_all.items()},
            "f1_weighted": multiclass_f1_score(predicted, labels, K, average="weighted"),
            "auc": self._auc(probabilities, labels),
            "images": torch.tensor(len(labels)),
        }
        if self.positive is not None:
            figures |= self._of_positive(predicted == self.positive, labels == self.positive)
        return figures

    @staticmethod
    def _of_positive(called: Tensor, true: Tensor) -> dict[str, Tensor]:
        """Precision, recall and F1 of one class; 0 / 0 is NaN."""
        hits, called, true = ((called & true).sum(), called.sum(), true.sum())
        return {
            "precision_positive": hits / called,
            "recall_positive": hits / true,
            "f1_positive": 2 * hits / (called + true),
        }

    def _auc(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        counts = torch.bincount(labels, minlength=self.num_classes)
        judged = (counts > 0) & (counts < len(labels))
        if not judged.any():
            return torch.tensor(float("nan"))
        if self.num_classes == 2:
            return binary_auroc(probabilities[:, 1], labels)
        # torchmetrics warns about a class without example and counts it as 0, so such classes are left out
        each = [binary_auroc(probabilities[:, k], (labels == k).long()) for k in judged.nonzero().flatten().tolist()]
        return torch.stack(each).mean()


# --- failure detection ------------------------------------------------------------------------------------------------


def failure_detection(scores: Tensor, failed: Tensor) -> dict[str, Tensor]:
    """How well a score, such as a gate, predicts failure.

    Args:
        scores: (N,); a higher score must mean that failure is likelier. Images with NaN are left out.
        failed: (N,), bool.

    Returns:
        "auroc" and "average_precision", NaN if all or none failed, and "failures", the number of failures.

    Raises:
        TypeError, ValueError: wrong dtype or shape.

    Example:
        >>> import torch
        >>> from mtlkit.metrics import failure_detection
        >>> values = failure_detection(torch.tensor([0.9, 0.2, 0.8, 0.1]), torch.tensor([True, False, True, False]))
        >>> float(values["auroc"]), int(values["failures"])
        (1.0, 2)
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        raise TypeError(f"scores: expected a floating-point tensor, got {getattr(scores, 'dtype', type(scores))}")
    if not isinstance(failed, Tensor) or failed.dtype != torch.bool:
        raise TypeError(f"failed: expected a bool tensor, got {getattr(failed, 'dtype', type(failed))}")
    if scores.dim() != 1:
        raise ValueError(f"scores: expected shape (N,), got {tuple(scores.shape)}")
    _check_same("failed", failed, "scores", scores.shape)
    known = ~scores.isnan()
    scores, failed = scores[known], failed[known].long()
    failures = failed.sum()
    if not 0 < failures < len(failed):
        nan = torch.tensor(float("nan"))
        return {"auroc": nan, "average_precision": nan, "failures": failures}
    # ranks keep the order for any range; torchmetrics would treat scores beyond [0, 1] as logits, and round
    ranks = torch.unique(scores, return_inverse=True)[1].double()  # (N,)
    ranks = ranks / ranks.max().clamp_min(1)
    return {
        "auroc": binary_auroc(ranks, failed),
        "average_precision": binary_average_precision(ranks, failed),
        "failures": failures,
    }
