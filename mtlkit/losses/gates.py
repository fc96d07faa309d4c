"""The second stage of BTI-Net: the targets of the gates, and their loss."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit._check import check_tensor
from mtlkit._distributed import Group, extremes_over
from mtlkit.losses._common import EPS, check_masks, full_precision, probability

__all__ = ["classification_difficulty", "gate_loss", "segmentation_difficulty"]


def _difficulty(quality: Tensor, group: Group | None) -> Tensor:
    """1 - minmax of (B,) over the batch, clipped away from 0 and 1."""
    low, high = torch.aminmax(quality) if group is None else extremes_over(group, quality)
    return (1 - (quality - low) / (high - low + EPS)).clamp(1e-6, 1 - 1e-6)


@full_precision
def segmentation_difficulty(logits: Tensor, target: Tensor, *, group: Group | None = None) -> Tensor:
    """The target of the segmentation gates: 1 for the image with the lowest soft IoU in the batch, 0 for the highest.

    Args:
        logits: (B, 1, H, W), floating point. No gradient flows into them.
        target: (B, 1, H, W), in [0, 1], any dtype.
        group: torch.distributed process group that shares a batch.

    Returns:
        (B,). A single image cannot be compared and gets 1, whatever the prediction.

    Raises:
        TypeError, ValueError: wrong dtype or shape.

    Example:
        >>> import torch
        >>> from mtlkit.losses import segmentation_difficulty
        >>> mask = torch.ones(2, 1, 4, 4)
        >>> segmentation_difficulty(torch.stack([4 * mask[0], -4 * mask[0]]), mask).round()
        tensor([0., 1.])
    """
    target = check_masks(logits, target)
    p, g = probability(logits.detach()).flatten(1), target.flatten(1)  # (B, H W)
    return _difficulty((p * g).sum(1) / ((p + g - p * g).sum(1) + EPS), group)


@full_precision
def classification_difficulty(logits: Tensor, *, group: Group | None = None) -> Tensor:
    """The target of the classification gates: 1 for the least confident image of the batch, 0 for the most confident.

    Args:
        logits: (B, K), floating point. No gradient flows into them.
        group: torch.distributed process group that shares a batch.

    Returns:
        (B,). A single image cannot be compared and gets 1, whatever the prediction.

    Raises:
        TypeError, ValueError: wrong dtype or shape.

    Example:
        >>> import torch
        >>> from mtlkit.losses import classification_difficulty
        >>> classification_difficulty(torch.tensor([[0.0, 9.0], [0.0, 1.0]])).round()
        tensor([0., 1.])
    """
    check_tensor("logits", logits, 2)
    if logits.numel() == 0:
        raise ValueError(f"logits: expected shape (B, K) with at least one image and class, got {tuple(logits.shape)}")
    return _difficulty(logits.detach().softmax(1).amax(1), group)


def gate_loss(gates: Tensor | Sequence[Tensor], difficulty: Tensor) -> Tensor:
    """Binary cross-entropy between the gates of each level and the difficulty of each image, mean over both.

    The second stage of BTI-Net adds it to a task's loss, so that the tasks interact more on hard images.

    Args:
        gates: one tensor (B,) or (B, 1) per level, or all levels as (levels, B); in [0, 1], floating point.
        difficulty: (B,), in [0, 1], from `segmentation_difficulty` or `classification_difficulty`.

    Raises:
        TypeError, ValueError: wrong dtype or shape.

    Example:
        >>> import torch
        >>> from mtlkit.losses import gate_loss
        >>> gate_loss([torch.tensor([0.1, 0.9])] * 4, torch.tensor([0.0, 1.0])).round(decimals=4)
        tensor(0.1054)
    """
    check_tensor("difficulty", difficulty, 1)
    levels = list(gates)
    if not levels:
        raise ValueError("gates: expected at least one level, got none")
    for level, w in enumerate(levels):
        check_tensor(f"gates[{level}]", w, (1, 2))
        if w.numel() != len(difficulty) or w.shape[0] != len(difficulty):
            expected = f"({len(difficulty)},) or ({len(difficulty)}, 1)"
            raise ValueError(f"gates[{level}]: expected shape {expected}, got {tuple(w.shape)}")
    w = torch.stack([w.flatten() for w in levels])  # (levels, B)
    w = (w if w.dtype == torch.float64 else w.float()).clamp(1e-6, 1 - 1e-6)
    t = difficulty.detach().to(w.dtype)
    return -(t * w.log() + (1 - t) * torch.log1p(-w)).mean()
