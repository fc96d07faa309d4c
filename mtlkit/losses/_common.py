"""Shared by the losses: checks, precision, and means over a batch."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from mtlkit._check import check_device, check_shape, check_tensor
from mtlkit._distributed import Group, sum_over

EPS = 1e-7


def full_precision(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Runs a loss outside autocast; its first argument, the logits, must be a floating-point tensor."""

    @wraps(function)
    def run(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(f"logits: expected a floating-point tensor, got {kind}")
        with torch.autocast(logits.device.type, enabled=False):
            return function(logits if logits.dtype == torch.float64 else logits.float(), *args, **kwargs)

    return run


def check_masks(logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
    """Raises unless both are (B, 1, H, W) and `known`, if given, (B,) of bool; `target` in the dtype of the logits."""
    check_tensor("logits", logits, 4)
    if logits.shape[1] != 1 or logits.numel() == 0:
        raise ValueError(f"logits: expected shape (B, 1, H, W) with at least one pixel, got {tuple(logits.shape)}")
    if not isinstance(target, Tensor) or target.is_complex():
        kind = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"target: expected a tensor of numbers or bool, got {kind}")
    check_shape("target", target, "(B, 1, H, W), that of logits,", *logits.shape)
    check_device(logits=logits, target=target)
    if known is not None:
        if not isinstance(known, Tensor) or known.dtype != torch.bool:
            kind = known.dtype if isinstance(known, Tensor) else type(known).__name__
            raise TypeError(f"known: expected a bool tensor, got {kind}")
        check_shape("known", known, "(B,)", len(logits))
        check_device(logits=logits, known=known)
    return target.to(logits.dtype)


def check_labels(logits: Tensor, labels: Tensor) -> None:
    check_tensor("logits", logits, 2)
    if logits.shape[1] < 2:
        raise ValueError(f"logits: expected shape (B, K) with at least 2 classes, got {tuple(logits.shape)}")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels: expected an int64 tensor, got {kind}")
    check_shape("labels", labels, "(B,)", len(logits))
    check_device(logits=logits, labels=labels)


def weighted_mean(loss: Tensor, weight: Tensor, group: Group | None) -> Tensor:
    """Mean of `loss` (B,) weighted by `weight` (B,); 0 with zero gradients if all weights are 0."""
    sums = torch.stack([(loss * weight).sum(), weight.sum()])
    above, below = sums if group is None else sum_over(group, sums)
    return above / torch.where(below > 0, below, torch.ones_like(below))


def mean_over_images(loss: Tensor, known: Tensor | None, group: Group | None) -> Tensor:
    """Mean of `loss` (B,) over the known images."""
    if known is None and group is None:
        return loss.mean()
    return weighted_mean(loss, torch.ones_like(loss) if known is None else known.to(loss.dtype), group)


def probability(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits).clamp(EPS, 1 - EPS)
