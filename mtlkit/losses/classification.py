"""Classification losses: focal and weighted cross-entropy, and class weights."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit._check import check_shape, check_tensor
from mtlkit._distributed import Group
from mtlkit.losses._common import EPS, check_labels, full_precision, weighted_mean

__all__ = ["class_weights", "focal_cross_entropy", "weighted_cross_entropy"]


@full_precision
def focal_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    *,
    gamma: float = 2.0,
    ignore_index: int = -1,
    max_loss: float | None = 10.0,
    group: Group | None = None,
) -> Tensor:
    """Focal cross-entropy, which emphasises hard images; mean over the labelled images.

    Args:
        logits: (B, K), floating point.
        labels: (B,), int64: the class, or `ignore_index` if it is unknown.
        weight: weight of each class, (K,); by default 1.
        gamma: exponent of 1 - p_y; 0 is plain cross-entropy.
        ignore_index: label of an unlabelled image. A batch without labels gives 0 and zero gradients.
        max_loss: upper limit of an image's loss, as in the published code; None for no limit.
        group: torch.distributed process group that shares a batch.

    Raises:
        TypeError, ValueError: wrong dtype or shape, or a negative exponent.

    Example:
        >>> import torch
        >>> from mtlkit.losses import focal_cross_entropy
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> labels = torch.tensor([0, -1])
        >>> focal_cross_entropy(logits, labels, gamma=0.0) == torch.nn.functional.cross_entropy(logits[:1], labels[:1])
        tensor(True)
    """
    check_labels(logits, labels)
    if not gamma >= 0:
        raise ValueError(f"gamma: expected a number that is at least 0, got {gamma!r}")
    of_image = _weight_of_images(logits, labels, weight, ignore_index)
    log_p = -F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")  # (B,)
    loss = (-torch.expm1(log_p)).clamp_min(EPS) ** gamma * -log_p
    loss = loss if max_loss is None else loss.clamp_max(max_loss)
    return weighted_mean(loss, of_image, group)


@full_precision
def weighted_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -1,
    group: Group | None = None,
) -> Tensor:
    """Cross-entropy weighted by class, mean over the labelled images.

    The same as torch's cross-entropy, except that a batch without labels gives 0 and zero gradients instead of NaN.

    Args:
        logits: (B, K), floating point.
        labels: (B,), int64: the class, or `ignore_index` if it is unknown.
        weight: weight of each class, (K,); by default 1.
        ignore_index: label of an unlabelled image.
        group: torch.distributed process group that shares a batch.

    Raises:
        TypeError, ValueError: wrong dtype or shape.

    Example:
        >>> import torch
        >>> from mtlkit.losses import weighted_cross_entropy
        >>> weighted_cross_entropy(torch.rand(2, 3), torch.tensor([-1, -1]))
        tensor(0.)
    """
    check_labels(logits, labels)
    of_image = _weight_of_images(logits, labels, weight, ignore_index)
    loss = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")  # (B,)
    return weighted_mean(loss, of_image, group)


def _weight_of_images(logits: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """(B,): the weight of each image's class, 0 if it is unknown."""
    known = labels != ignore_index
    if weight is None:
        return known.to(logits.dtype)
    check_tensor("weight", weight, 1)
    check_shape("weight", weight, "(K,)", logits.shape[1])
    return weight.to(logits)[labels.where(known, torch.zeros_like(labels))] * known


def class_weights(labels: Tensor, num_classes: int, *, ignore_index: int = -1) -> Tensor:
    """Class weights by inverse frequency, N / (K n_c); all are 1 if the classes are equally frequent.

    Args:
        labels: any shape, integers.
        num_classes: K.
        ignore_index: label of an unlabelled image.

    Returns:
        (K,), float32.

    Raises:
        ValueError: a label is out of range, or a class has no example.

    Example:
        >>> import torch
        >>> from mtlkit.losses import class_weights
        >>> class_weights(torch.tensor([0, 0, 0, 1, -1]), 2)
        tensor([0.6667, 2.0000])
    """
    known = labels[labels != ignore_index]
    if known.numel() and (int(known.min()) < 0 or int(known.max()) >= num_classes):
        raise ValueError(f"labels: expected 0 to {num_classes - 1}, got {int(known.min())} to {int(known.max())}")
    counts = torch.bincount(known.flatten(), minlength=num_classes)
    if (missing := (counts == 0).nonzero().flatten().tolist()) != []:
        raise ValueError(f"labels: there is no example of class {', '.join(map(str, missing))}")
    return known.numel() / (num_classes * counts.float())
