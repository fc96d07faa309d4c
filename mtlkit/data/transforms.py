"""The papers' augmentations for image and mask together, with torchvision's transforms v2.

Every transform maps (3, H, W) uint8 to (3, size, size) float32 in [0, 1], by default normalised to ImageNet's mean and
standard deviation, which pretrained encoders expect. Masks are resized by nearest neighbour.

Sources: MBDI and BTI-Net (arXiv 2603.01295, 2606.29102), CSA-MoE-Net (arXiv 2605.25518), the hybrid CNN-VSSM
(arXiv 2507.16955).
"""

from collections.abc import Callable

import torch
from torch import nn
from torchvision.transforms import InterpolationMode, v2

from mtlkit.data.items import MEAN, STD

__all__ = ["AUGMENTATIONS", "augmentation", "preparation"]

_BILINEAR = InterpolationMode.BILINEAR


def _mbdi() -> nn.Module:
    flips = [v2.RandomHorizontalFlip(0.5), v2.RandomVerticalFlip(0.5)]
    return v2.Compose([*flips, v2.RandomApply([v2.RandomRotation((-15, 15), _BILINEAR)], p=0.7)])


def _mbdi_elastic() -> nn.Module:
    return v2.Compose([_mbdi(), v2.RandomApply([v2.ElasticTransform(alpha=40.0, sigma=6.0)], p=0.5)])


def _csa_moe() -> nn.Module:
    flips = [v2.RandomHorizontalFlip(0.5), v2.RandomVerticalFlip(0.5)]
    return v2.Compose([*flips, v2.RandomRotation((-15, 15), _BILINEAR)])


def _hybrid_vssm() -> nn.Module:
    affine = v2.RandomAffine(degrees=(-10, 10), translate=(0.05, 0.05), scale=(0.95, 1.05), interpolation=_BILINEAR)
    return v2.Compose([affine, v2.RandomHorizontalFlip(0.5)])


AUGMENTATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": v2.Identity,
    # flips, and rotation by up to 15 degrees in 7 of 10; BTI-Net's too
    "mbdi": _mbdi,
    # the same with the elastic deformation that MBDI's text names; its strength is not published
    "mbdi_elastic": _mbdi_elastic,
    # flips, and rotation by up to 15 degrees always
    "csa_moe": _csa_moe,
    # rotation by up to 10 degrees, shift by up to 5 %, scale 0.95 to 1.05, left-right flip
    "hybrid_vssm": _hybrid_vssm,
}


def augmentation(name: str) -> nn.Module:
    """The random part of a paper's training transform.

    Args:
        name: one of `AUGMENTATIONS`: "none", "mbdi" (also BTI-Net's), "mbdi_elastic", "csa_moe" or "hybrid_vssm".

    Raises:
        ValueError: there is no such augmentation.

    Example:
        >>> import torch
        >>> from torchvision import tv_tensors
        >>> from mtlkit.data import augmentation
        >>> image = tv_tensors.Image(torch.zeros(3, 8, 8, dtype=torch.uint8))
        >>> mask = tv_tensors.Mask(torch.ones(1, 8, 8, dtype=torch.uint8))
        >>> image, mask = augmentation("mbdi")(image, mask)  # moved together
        >>> mask.unique().tolist() in ([1], [0, 1])
        True
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"augmentation: expected one of {', '.join(AUGMENTATIONS)}, got {name!r}")
    return AUGMENTATIONS[name]()


def preparation(*, normalize: bool = True) -> nn.Module:
    """The fixed part after augmentation: uint8 to float32 in [0, 1], normalised to ImageNet's mean and deviation.

    Args:
        normalize: whether to normalise; otherwise values stay in [0, 1].

    Example:
        >>> import torch
        >>> from torchvision import tv_tensors
        >>> from mtlkit.data import preparation
        >>> image = tv_tensors.Image(torch.full((3, 2, 2), 255, dtype=torch.uint8))
        >>> float(preparation(normalize=False)(image).max())
        1.0
    """
    steps = [v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*steps, v2.Normalize(MEAN, STD)] if normalize else steps)
