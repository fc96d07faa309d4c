"""Segmentation losses: focal Tversky, boundary, texture, and their sum."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit._distributed import Group, sum_over
from mtlkit.losses._common import EPS, check_masks, full_precision, mean_over_images, probability

__all__ = [
    "TVERSKY_PRESETS",
    "SegmentationLoss",
    "TverskyOptions",
    "boundary_loss",
    "curvature_kernel",
    "focal_tversky_loss",
    "texture_loss",
    "tversky_index",
]


@dataclass(frozen=True)
class TverskyOptions:
    """Settings of the focal Tversky loss.

    Args:
        fp_weight: a, the weight of false positives.
        fn_weight: b, the weight of false negatives.
        gamma: the exponent; below 1 it strengthens the gradient of well-segmented images.
        smooth: s. With 1e-7 an image without lesion has a loss of about 1 and no gradient; with 1 it has a gradient.
        per_image: whether each image has its own index; otherwise the batch counts as a single image.

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
    # from the text of MBDI and BTI-Net
    "mbdi": TverskyOptions(),
    # from their published code, a soft Dice loss
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


@full_precision
def tversky_index(
    logits: Tensor,
    target: Tensor,
    tversky: TverskyOptions | str = "mbdi",
    *,
    known: Tensor | None = None,
    group: Group | None = None,
) -> Tensor:
    """The soft Tversky index, 1 where prediction and mask agree.

    Args:
        logits: (B, 1, H, W), floating point.
        target: (B, 1, H, W), in [0, 1], any dtype.
        tversky: options, or the name of a preset; `gamma` is not used.
        known: (B,), bool: the images to include, unless `per_image`; all if None.
        group: torch.distributed process group that shares a batch; ignored if `per_image`.

    Returns:
        (B,), or (1,) unless `per_image`.

    Raises:
        TypeError, ValueError: wrong dtype or shape, or an unknown preset.

    Example:
        >>> import torch
        >>> from mtlkit.losses import tversky_index
        >>> mask = torch.tensor([[[[0.0, 1.0]]]])
        >>> tversky_index(torch.tensor([[[[-9.0, 9.0]]]]), mask).round(decimals=2)
        tensor([1.])
    """
    options = _options(tversky)
    target = check_masks(logits, target, known)
    p, g = probability(logits).flatten(1), target.flatten(1)  # (B, H W)
    if not options.per_image:
        counted = slice(None) if known is None else known
        p, g = p[counted].reshape(1, -1), g[counted].reshape(1, -1)
    tp = (p * g).sum(1)  # (B,)
    fp, fn = (p * (1 - g)).sum(1), ((1 - p) * g).sum(1)
    if group is not None and not options.per_image:
        tp, fp, fn = sum_over(group, torch.stack([tp, fp, fn]))
    return (tp + options.smooth) / (tp + options.fp_weight * fp + options.fn_weight * fn + options.smooth)


@full_precision
def focal_tversky_loss(
    logits: Tensor,
    target: Tensor,
    tversky: TverskyOptions | str = "mbdi",
    *,
    size_boost: bool = False,
    known: Tensor | None = None,
    group: Group | None = None,
) -> Tensor:
    """Mean over the images of (1 - Tversky index)^gamma.

    Args:
        logits: (B, 1, H, W), floating point.
        target: (B, 1, H, W), in [0, 1], any dtype.
        tversky: options, or the name of a preset: "mbdi", "mbdi_code" or "abraham".
        size_boost: whether to multiply the loss of each image by 1 + exp(-10 r), where r is the lesion's fraction of
            its pixels, as in MBDI's published code; needs `per_image`.
        known: (B,), bool: the images to include; all if None. If there are none, the loss is 0 with zero gradients.
        group: torch.distributed process group that shares a batch.

    Raises:
        TypeError, ValueError: wrong dtype or shape, or an unknown preset.

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
        raise ValueError("size_boost: expected False with per_image=False, got True")
    index = tversky_index(logits, target, options, known=known, group=group)  # (B,) or (1,)
    loss = (1 - index).clamp_min(EPS) ** options.gamma
    if size_boost:
        loss = loss * (1 + torch.exp(-10 * target.to(loss.dtype).mean((1, 2, 3))))
    if not options.per_image and (known is not None or group is not None):
        loss = loss.expand(len(logits))  # the same for every image that counts
    return mean_over_images(loss, known, group)


def curvature_kernel(size: int = 5, sigma: float | None = None) -> Tensor:
    """The kernel of the boundary loss: a horizontal minus a vertical second difference, with total weight 1.

    Args:
        size: rows and columns, odd, at least 3.
        sigma: width of the Gaussian in pixels; by default a quarter of `size`.

    Returns:
        (size, size), float64.

    Raises:
        ValueError: the size is even or too small, or the width is not positive.

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
    """Cross-correlation with zero padding: (B, 1, H, W) to the same shape."""
    return F.conv2d(image, kernel.to(image)[None, None], padding=kernel.shape[0] // 2)


@full_precision
def boundary_loss(
    logits: Tensor,
    target: Tensor,
    *,
    soft: bool = True,
    known: Tensor | None = None,
    group: Group | None = None,
) -> Tensor:
    """Difference between the curvature of the predicted and the true outline, mean over the images, in [0, 1].

    Args:
        logits: (B, 1, H, W), floating point.
        target: (B, 1, H, W), in [0, 1], any dtype.
        soft: whether to compare probabilities, which has a gradient. False compares masks thresholded at 0.5, as the
            paper defines and reports it; the gradient is then zero.
        known: as for `focal_tversky_loss`.
        group: as for `focal_tversky_loss`.

    Raises:
        TypeError, ValueError: wrong dtype or shape.

    Example:
        >>> import torch
        >>> from mtlkit.losses import boundary_loss
        >>> mask = torch.zeros(1, 1, 8, 8)
        >>> mask[..., 2:6, 2:6] = 1
        >>> boundary_loss(100 * mask - 50, mask, soft=False)
        tensor(0.)
    """
    target = check_masks(logits, target, known)
    p, g = probability(logits), target
    if not soft:
        p, g = (p > 0.5).to(p) + 0 * p, (g > 0.5).to(g)  # + 0 p: a gradient, of zeros, and NaN for NaN
    difference = _filter(g - p, curvature_kernel()).abs()  # (B, 1, H, W): the filter is linear
    return mean_over_images(difference.mean((1, 2, 3)), known, group)


@full_precision
def texture_loss(logits: Tensor, target: Tensor, *, known: Tensor | None = None, group: Group | None = None) -> Tensor:
    """Difference between the standard deviations of horizontal edges in prediction and mask, mean over the images.

    Args:
        logits: (B, 1, H, W), floating point.
        target: (B, 1, H, W), in [0, 1], any dtype.
        known: as for `focal_tversky_loss`.
        group: as for `focal_tversky_loss`.

    Raises:
        TypeError, ValueError: wrong dtype or shape.

    Example:
        >>> import torch
        >>> from mtlkit.losses import texture_loss
        >>> mask = torch.zeros(1, 1, 8, 8)
        >>> mask[..., 2:6, 2:6] = 1
        >>> texture_loss(torch.full((1, 1, 8, 8), -20.0), mask) > texture_loss(40 * mask - 20, mask)
        tensor(True)
    """
    target = check_masks(logits, target, known)
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])

    def spread(image: Tensor) -> Tensor:
        return torch.sqrt(_filter(image, sobel).var((1, 2, 3), correction=0) + 1e-8)  # (B,)

    return mean_over_images((spread(target) - spread(probability(logits))).abs(), known, group)


class SegmentationLoss(nn.Module):
    """Segmentation loss of MBDI and BTI-Net: focal Tversky with size boost, plus boundary and texture.

    Args:
        tversky: options, or the name of a preset.
        boundary_weight: weight of the boundary loss.
        texture_weight: weight of the texture loss.
        size_boost: whether to emphasise small lesions; see `focal_tversky_loss`.
        soft_boundary: whether the boundary loss has a gradient; False is the papers' definition without one.

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

    def forward(
        self, logits: Tensor, target: Tensor, *, known: Tensor | None = None, group: Group | None = None
    ) -> Tensor:
        """The loss of logits and masks (B, 1, H, W); `known` and `group` as for `focal_tversky_loss`."""
        among = {"known": known, "group": group}
        loss = focal_tversky_loss(logits, target, self.tversky, size_boost=self.size_boost, **among)
        if self.boundary_weight > 0:
            loss = loss + self.boundary_weight * boundary_loss(logits, target, soft=self.soft_boundary, **among)
        if self.texture_weight > 0:
            loss = loss + self.texture_weight * texture_loss(logits, target, **among)
        return loss

    def extra_repr(self) -> str:
        """The options, for repr."""
        weights = f"boundary_weight={self.boundary_weight}, texture_weight={self.texture_weight}"
        return f"{self.tversky}, {weights}, size_boost={self.size_boost}, soft_boundary={self.soft_boundary}"
