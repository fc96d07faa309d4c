"""Losses of the four networks: logits in, float32 inside (also under autocast; float64 stays), a scalar out.

B images of H x W pixels; z logits, p = sigmoid(z) clipped to [1e-7, 1 - 1e-7], g the mask in [0, 1].

    tversky index    T = (TP + s) / (TP + a FP + b FN + s);  TP = sum p g, FP = sum p (1 - g), FN = sum (1 - p) g
    focal tversky    max(1 - T, 1e-7)^gamma
    boundary         mean |K * g - K * p|, K the curvature kernel (x^2 - y^2) exp(-(x^2 + y^2) / (2 s^2)) / sum |.|
    texture          |std(S * g) - std(S * p)|, S the horizontal Sobel kernel
    focal CE         (1 - p_y)^gamma (-log p_y), p = softmax
    gates            mean over levels of BCE(t, w), t = 1 - minmax(quality) over the batch

Sources: Abraham and Khan, "A Novel Focal Tversky Loss Function with Improved Attention U-Net for Lesion Segmentation"
(2019); "Multi-Level Bidirectional Decoder Interaction for Uncertainty-Aware Breast Ultrasound Analysis" (MBDI,
arXiv 2603.01295), section 2.4, equations 11 and 12; "Bidirectional Decoder-Level Task Interaction via
Uncertainty-Aware Gating" (BTI-Net, arXiv 2606.29102), second stage of training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit.ops._check import check_device, check_shape, check_tensor

__all__ = [
    "TVERSKY_PRESETS",
    "SegmentationLoss",
    "TverskyOptions",
    "boundary_loss",
    "class_weights",
    "classification_difficulty",
    "curvature_kernel",
    "focal_cross_entropy",
    "focal_tversky_loss",
    "gate_loss",
    "segmentation_difficulty",
    "texture_loss",
    "tversky_index",
    "weighted_cross_entropy",
]

EPS = 1e-7

# --- options, checks and precision ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TverskyOptions:
    """How the focal Tversky loss counts.

    Args:
        fp_weight: a, the weight of false positives.
        fn_weight: b, the weight of false negatives.
        gamma: the exponent; below 1 it strengthens the gradient of well-segmented images.
        smooth: s. With 1e-7 an image without lesion costs about 1 and teaches nothing; with 1 it has a gradient.
        per_image: one index an image; otherwise one for the whole batch, as if it were a single image.

    Example:
        >>> from mtlkit.losses import TVERSKY_PRESETS
        >>> TVERSKY_PRESETS["mbdi"].fn_weight
        0.7
    """

    fp_weight: float = 0.3
    fn_weight: float = 0.7
    gamma: float = 0.75
    smooth: float = EPS
    per_image: bool = True

    def __post_init__(self) -> None:
        for name in ("fp_weight", "fn_weight", "smooth"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected a number that is at least 0, got {getattr(self, name)!r}")
        if not self.gamma > 0:
            raise ValueError(f"gamma: expected a number above 0, got {self.gamma!r}")


TVERSKY_PRESETS = {
    # the text of MBDI and BTI-Net
    "mbdi": TverskyOptions(),
    # their published code, whose weights make it a soft Dice loss
    "mbdi_code": TverskyOptions(fp_weight=0.5, fn_weight=0.5),
    # Abraham and Khan
    "abraham": TverskyOptions(smooth=1.0, per_image=False),
}


def _options(tversky: TverskyOptions | str) -> TverskyOptions:
    if isinstance(tversky, TverskyOptions):
        return tversky
    if tversky not in TVERSKY_PRESETS:
        raise ValueError(f"tversky: expected TverskyOptions or one of {', '.join(TVERSKY_PRESETS)}, got {tversky!r}")
    return TVERSKY_PRESETS[tversky]


def _full_precision(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Runs a loss outside autocast; its first argument, the logits, must be a floating-point tensor."""

    @wraps(function)
    def run(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
            raise TypeError(f"logits: expected a floating-point tensor, got {kind}")
        with torch.autocast(logits.device.type, enabled=False):
            return function(logits if logits.dtype == torch.float64 else logits.float(), *args, **kwargs)

    return run


def _check_masks(logits: Tensor, target: Tensor) -> Tensor:
    """Raises unless both are (B, 1, H, W); `target` in the dtype of the logits."""
    check_tensor("logits", logits, 4)
    if logits.shape[1] != 1 or logits.numel() == 0:
        raise ValueError(f"logits: expected shape (B, 1, H, W) with at least one pixel, got {tuple(logits.shape)}")
    if not isinstance(target, Tensor) or target.is_complex():
        kind = target.dtype if isinstance(target, Tensor) else type(target).__name__
        raise TypeError(f"target: expected a tensor of numbers or bool, got {kind}")
    check_shape("target", target, "(B, 1, H, W), that of logits,", *logits.shape)
    check_device(logits=logits, target=target)
    return target.to(logits.dtype)


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    check_tensor("logits", logits, 2)
    if logits.shape[1] < 2:
        raise ValueError(f"logits: expected shape (B, K) with at least 2 classes, got {tuple(logits.shape)}")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"labels: expected an int64 tensor, got {kind}")
    check_shape("labels", labels, "(B,)", len(logits))
    check_device(logits=logits, labels=labels)


def _probability(logits: Tensor) -> Tensor:
    return torch.sigmoid(logits).clamp(EPS, 1 - EPS)


# --- segmentation -----------------------------------------------------------------------------------------------------


@_full_precision
def tversky_index(logits: Tensor, target: Tensor, tversky: TverskyOptions | str = "mbdi") -> Tensor:
    """The soft Tversky index, 1 where prediction and mask agree.

    Args:
        logits: (B, 1, H, W), floating point.
        target: (B, 1, H, W), in [0, 1], any dtype.
        tversky: options, or the name of a preset; `gamma` is not used.

    Returns:
        (B,), or (1,) unless `per_image`.

    Raises:
        TypeError, ValueError: another dtype, shape or preset.

    Example:
        >>> import torch
        >>> from mtlkit.losses import tversky_index
        >>> mask = torch.tensor([[[[0.0, 1.0]]]])
        >>> tversky_index(torch.tensor([[[[-9.0, 9.0]]]]), mask).round(decimals=2)
        tensor([1.])
    """
    options = _options(tversky)
    target = _check_masks(logits, target)
    rows = (len(logits), -1) if options.per_image else (1, -1)
    p, g = _probability(logits).reshape(rows), target.reshape(rows)  # (B, H W)
    tp = (p * g).sum(1)  # (B,)
    fp, fn = (p * (1 - g)).sum(1), ((1 - p) * g).sum(1)
    return (tp + options.smooth) / (tp + options.fp_weight * fp + options.fn_weight * fn + options.smooth)


@_full_precision
def focal_tversky_loss(
    logits: Tensor, target: Tensor, tversky: TverskyOptions | str = "mbdi", *, size_boost: bool = False
) -> Tensor:
    """Mean over the images of (1 - Tversky index)^gamma.

    Args:
        logits: (B, 1, H, W), floating point.
        target: (B, 1, H, W), in [0, 1], any dtype.
        tversky: options, or the name of a preset: "mbdi", "mbdi_code" or "abraham".
        size_boost: multiplies the loss of each image by 1 + exp(-10 r), r the share of its pixels in the lesion, as
            the published code of MBDI does; needs `per_image`.

    Raises:
        TypeError, ValueError: another dtype, shape or preset.

    Example:
        >>> import torch
        >>> from mtlkit.losses import TverskyOptions, focal_tversky_loss
        >>> logits, mask = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
        >>> dice_loss = focal_tversky_loss(logits, mask, TverskyOptions(0.5, 0.5, gamma=1.0))
        >>> dice_loss.round(decimals=4)
        tensor(0.5000)
    """
    options = _options(tversky)
    if size_boost and not options.per_image:
        raise ValueError("size_boost: needs a loss of each image, which these options (per_image=False) do not give")
    loss = (1 - tversky_index(logits, target, options)).clamp_min(EPS) ** options.gamma  # (B,)
    if size_boost:
        loss = loss * (1 + torch.exp(-10 * target.to(loss.dtype).mean((1, 2, 3))))
    return loss.mean()


def curvature_kernel(size: int = 5, sigma: float | None = None) -> Tensor:
    """The kernel of the boundary loss, a second difference across minus one down, of total weight 1.

    Args:
        size: rows and columns, odd, at least 3.
        sigma: width of the Gaussian in pixels; by default a quarter of `size`.

    Returns:
        (size, size), float64.

    Raises:
        ValueError: an even or too small size, or a width that is not above 0.

    Example:
        >>> from mtlkit.losses import curvature_kernel
        >>> curvature_kernel()[2].round(decimals=7)
        tensor([0.0912, 0.0595, 0.0000, 0.0595, 0.0912], dtype=torch.float64)
    """
    if size < 3 or size % 2 == 0:
        raise ValueError(f"size: expected an odd number that is at least 3, got {size!r}")
    sigma = size / 4 if sigma is None else sigma
    if not sigma > 0:
        raise ValueError(f"sigma: expected a number above 0, got {sigma!r}")
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")  # (size, size)
    kernel = (x**2 - y**2) * torch.exp(-(x**2 + y**2) / (2 * sigma**2))
    return kernel / kernel.abs().sum()


def _filter(image: Tensor, kernel: Tensor) -> Tensor:
    """Cross-correlation with zeros around: (B, 1, H, W) to the same."""
    return F.conv2d(image, kernel.to(image)[None, None], padding=kernel.shape[0] // 2)


@_full_precision
def boundary_loss(logits: Tensor, target: Tensor, *, soft: bool = True) -> Tensor:
    """Difference between the curvature of the predicted and the true outline, mean over the images, in [0, 1].

    Args:
        logits: (B, 1, H, W), floating point.
        target: (B, 1, H, W), in [0, 1], any dtype.
        soft: compares probabilities, which can be trained. False compares masks cut at 0.5, as the paper defines it
            and as its figures are computed; its gradient is zero everywhere.

    Raises:
        TypeError, ValueError: another dtype or shape.

    Example:
        >>> import torch
        >>> from mtlkit.losses import boundary_loss
        >>> mask = torch.zeros(1, 1, 8, 8)
        >>> mask[..., 2:6, 2:6] = 1
        >>> boundary_loss(100 * mask - 50, mask, soft=False)
        tensor(0.)
    """
    target = _check_masks(logits, target)
    p, g = _probability(logits), target
    if not soft:
        p, g = (p > 0.5).to(p) + 0 * p, (g > 0.5).to(g)  # + 0 p: a gradient, of zeros, and NaN for NaN
    difference = _filter(g - p, curvature_kernel()).abs()  # (B, 1, H, W): the filter is linear
    return difference.mean((1, 2, 3)).mean()


@_full_precision
def texture_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Difference between the spread of horizontal edges in prediction and mask, mean over the images.

    Args:
        logits: (B, 1, H, W), floating point.
        target: (B, 1, H, W), in [0, 1], any dtype.

    Raises:
        TypeError, ValueError: another dtype or shape.

    Example:
        >>> import torch
        >>> from mtlkit.losses import texture_loss
        >>> mask = torch.zeros(1, 1, 8, 8)
        >>> mask[..., 2:6, 2:6] = 1
        >>> texture_loss(torch.full((1, 1, 8, 8), -20.0), mask) > texture_loss(40 * mask - 20, mask)
        tensor(True)
    """
    target = _check_masks(logits, target)
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])

    def spread(image: Tensor) -> Tensor:
        return torch.sqrt(_filter(image, sobel).var((1, 2, 3), correction=0) + 1e-8)  # (B,)

    return (spread(target) - spread(_probability(logits))).abs().mean()


class SegmentationLoss(nn.Module):
    """Segmentation loss of MBDI and BTI-Net: focal Tversky with size boost, boundary, and texture.

    Args:
        tversky: options, or the name of a preset.
        boundary_weight: weight of the boundary loss.
        texture_weight: weight of the texture loss.
        size_boost: strengthens small lesions; see `focal_tversky_loss`.
        soft_boundary: trains the boundary loss; False is the papers' definition, without gradient.

    Example:
        >>> import torch
        >>> from mtlkit.losses import SegmentationLoss
        >>> logits = torch.zeros(2, 1, 16, 16, requires_grad=True)
        >>> mask = torch.zeros(2, 1, 16, 16)
        >>> mask[..., 4:9, 4:12] = 1
        >>> SegmentationLoss("mbdi_code")(logits, mask).backward()
    """

    def __init__(
        self,
        tversky: TverskyOptions | str = "mbdi",
        boundary_weight: float = 0.25,
        texture_weight: float = 0.15,
        *,
        size_boost: bool = True,
        soft_boundary: bool = True,
    ) -> None:
        super().__init__()
        for name, weight in (("boundary_weight", boundary_weight), ("texture_weight", texture_weight)):
            if not weight >= 0:
                raise ValueError(f"{name}: expected a number that is at least 0, got {weight!r}")
        self.tversky = _options(tversky)
        self.boundary_weight, self.texture_weight = boundary_weight, texture_weight
        self.size_boost, self.soft_boundary = size_boost, soft_boundary

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of logits and masks (B, 1, H, W)."""
        loss = focal_tversky_loss(logits, target, self.tversky, size_boost=self.size_boost)
        if self.boundary_weight > 0:
            loss = loss + self.boundary_weight * boundary_loss(logits, target, soft=self.soft_boundary)
        if self.texture_weight > 0:
            loss = loss + self.texture_weight * texture_loss(logits, target)
        return loss

    def extra_repr(self) -> str:
        """The options, for repr."""
        weights = f"boundary_weight={self.boundary_weight}, texture_weight={self.texture_weight}"
        return f"{self.tversky}, {weights}, size_boost={self.size_boost}, soft_boundary={self.soft_boundary}"


# --- classification ---------------------------------------------------------------------------------------------------


def _labelled_mean(loss: Tensor, weight: Tensor) -> Tensor:
    """Mean of `loss` (B,) weighted by `weight` (B,); 0, with a gradient of zeros, where all weights are 0."""
    total = weight.sum()
    return (loss * weight).sum() / torch.where(total > 0, total, torch.ones_like(total))


@_full_precision
def focal_cross_entropy(
    logits: Tensor, labels: Tensor, *, gamma: float = 2.0, ignore_index: int = -1, max_loss: float | None = 10.0
) -> Tensor:
    """Cross-entropy that attends to what is hard, mean over the labelled images.

    Args:
        logits: (B, K), floating point.
        labels: (B,), int64: the class, or `ignore_index` where it is not known.
        gamma: exponent of 1 - p_y; 0 is plain cross-entropy.
        ignore_index: what marks an image without label. A batch with nothing labelled gives 0 and gradients of zero.
        max_loss: an image's loss is cut here, as in the published code; None cuts nothing.

    Raises:
        TypeError, ValueError: another dtype or shape, a negative exponent.

    Example:
        >>> import torch
        >>> from mtlkit.losses import focal_cross_entropy
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
        >>> labels = torch.tensor([0, -1])
        >>> focal_cross_entropy(logits, labels, gamma=0.0) == torch.nn.functional.cross_entropy(logits[:1], labels[:1])
        tensor(True)
    """
    _check_labels(logits, labels)
    if not gamma >= 0:
        raise ValueError(f"gamma: expected a number that is at least 0, got {gamma!r}")
    known = labels != ignore_index
    log_p = -F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")  # (B,)
    loss = (-torch.expm1(log_p)).clamp_min(EPS) ** gamma * -log_p
    loss = loss if max_loss is None else loss.clamp_max(max_loss)
    return _labelled_mean(loss, known.to(loss.dtype))


@_full_precision
def weighted_cross_entropy(
    logits: Tensor, labels: Tensor, weight: Tensor | None = None, *, ignore_index: int = -1
) -> Tensor:
    """Cross-entropy weighted by class, mean over the labelled images.

    What torch computes, except that a batch with nothing labelled gives 0, and gradients of zero, in place of NaN.

    Args:
        logits: (B, K), floating point.
        labels: (B,), int64: the class, or `ignore_index` where it is not known.
        weight: (K,), of each class; by default 1.
        ignore_index: what marks an image without label.

    Raises:
        TypeError, ValueError: another dtype or shape.

    Example:
        >>> import torch
        >>> from mtlkit.losses import weighted_cross_entropy
        >>> weighted_cross_entropy(torch.rand(2, 3), torch.tensor([-1, -1]))
        tensor(0.)
    """
    _check_labels(logits, labels)
    if weight is None:
        weight = logits.new_ones(logits.shape[1])
    check_tensor("weight", weight, 1)
    check_shape("weight", weight, "(K,)", logits.shape[1])
    known = labels != ignore_index
    of_image = weight.to(logits)[labels.where(known, torch.zeros_like(labels))] * known  # (B,)
    return _labelled_mean(F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none"), of_image)


def class_weights(labels: Tensor, num_classes: int, *, ignore_index: int = -1) -> Tensor:
    """Inverse frequencies N / (K n_c): 1 for every class where all are as frequent.

    Args:
        labels: any shape, integers.
        num_classes: K.
        ignore_index: what marks an image without label.

    Returns:
        (K,), float32.

    Raises:
        ValueError: a label that is no class, or a class without example, which has no frequency.

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


# --- gates (second stage of BTI-Net) ----------------------------------------------------------------------------------


def _difficulty(quality: Tensor) -> Tensor:
    """1 - minmax of (B,) over the batch, clipped off 0 and 1."""
    low, high = quality.min(), quality.max()
    return (1 - (quality - low) / (high - low + EPS)).clamp(1e-6, 1 - 1e-6)


@_full_precision
def segmentation_difficulty(logits: Tensor, target: Tensor) -> Tensor:
    """What the segmentation gates are to learn: 1 for the image of lowest soft IoU in the batch, 0 for the highest.

    Args:
        logits: (B, 1, H, W), floating point. No gradient flows into them.
        target: (B, 1, H, W), in [0, 1], any dtype.

    Returns:
        (B,). In a batch of one image there is nothing to compare: it is hard, 1, whatever the prediction.

    Raises:
        TypeError, ValueError: another dtype or shape.

    Example:
        >>> import torch
        >>> from mtlkit.losses import segmentation_difficulty
        >>> mask = torch.ones(2, 1, 4, 4)
        >>> segmentation_difficulty(torch.stack([4 * mask[0], -4 * mask[0]]), mask).round()
        tensor([0., 1.])
    """
    target = _check_masks(logits, target)
    p, g = _probability(logits.detach()).flatten(1), target.flatten(1)  # (B, H W)
    return _difficulty((p * g).sum(1) / ((p + g - p * g).sum(1) + EPS))


@_full_precision
def classification_difficulty(logits: Tensor) -> Tensor:
    """What the classification gates are to learn: 1 for the least confident image of the batch, 0 for the most.

    Args:
        logits: (B, K), floating point. No gradient flows into them.

    Returns:
        (B,). In a batch of one image there is nothing to compare: it is hard, 1, whatever the prediction.

    Raises:
        TypeError, ValueError: another dtype or shape.

    Example:
        >>> import torch
        >>> from mtlkit.losses import classification_difficulty
        >>> classification_difficulty(torch.tensor([[0.0, 9.0], [0.0, 1.0]])).round()
        tensor([0., 1.])
    """
    check_tensor("logits", logits, 2)
    if logits.numel() == 0:
        raise ValueError(f"logits: expected shape (B, K) with at least one image and class, got {tuple(logits.shape)}")
    return _difficulty(logits.detach().softmax(1).amax(1))


def gate_loss(gates: Tensor | Sequence[Tensor], difficulty: Tensor) -> Tensor:
    """Binary cross-entropy between the gates of each level and how hard each image is, mean over levels and images.

    It is what the second stage of BTI-Net adds to a task's own loss: hard images are to interact more.

    Args:
        gates: one tensor (B,) or (B, 1) a level, or all of them as (levels, B); in [0, 1], floating point.
        difficulty: (B,), in [0, 1], of `segmentation_difficulty` or `classification_difficulty`.

    Raises:
        TypeError, ValueError: another dtype or shape.

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
