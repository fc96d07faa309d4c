"""The three views of a lesion that a radiologist looks at."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit._check import check_positive, check_tensor


class Views(NamedTuple):
    """The views of a batch of images, (B, C, H, W) each."""

    image: Tensor
    tumor: Tensor
    boundary: Tensor


class LesionViews(nn.Module):
    """Image, tumor core and boundary band, computed from an image and the mask of the lesion.

        tumor    = erode(mask) image                           a 3 x 3 square, `iterations` times
        boundary = (dilate(mask) - mask) image                 the same square

    As in OpenCV, erosion treats pixels outside the image as lesion, and dilation treats them as background. There are
    no parameters, and no gradients flow to the mask.

    Args:
        iterations: iterations of erosion and of dilation; 5 of them equal one square of 11 x 11.

    Shape:
        Channels-first: images (B, C, H, W) and masks (B, 1, H, W) of any real or boolean dtype, lesion where above 0.5,
        to `Views`: image, tumor and boundary, (B, C, H, W) each.

    Raises:
        ValueError: `iterations` is not positive, or images or masks have another shape.
        TypeError: the images are not a floating-point tensor, or the masks are not a tensor.

    Source: "Cross-Stage Attention Multi-Expert Network for Radiologist-Inspired Breast Ultrasound Diagnosis"
    (arXiv 2605.25518), section II-A.

    Example:
        >>> import torch, mtlkit
        >>> mask = torch.zeros(1, 1, 9, 9)
        >>> mask[:, :, 3:6, 3:6] = 1
        >>> views = mtlkit.nn.LesionViews(iterations=1)(torch.ones(1, 3, 9, 9), mask)
        >>> views.tumor[0, 0].sum().item(), views.boundary[0, 0].sum().item()
        (1.0, 16.0)
    """

    def __init__(self, iterations: int = 5) -> None:
        super().__init__()
        check_positive(iterations=iterations)
        self.iterations = iterations

    def forward(self, images: Tensor, masks: Tensor) -> Views:
        """(B, C, H, W) and (B, 1, H, W) to three tensors (B, C, H, W)."""
        check_tensor("images", images, 4)
        if not isinstance(masks, Tensor):
            raise TypeError(f"masks: expected a tensor, got {type(masks).__name__}")
        expected = (images.shape[0], 1, *images.shape[2:])
        if masks.shape != expected:
            raise ValueError(f"masks: expected shape (B, 1, H, W) = {tuple(expected)}, got {tuple(masks.shape)}")
        lesion = (masks > 0.5).to(images.dtype)  # (B, 1, H, W)
        core = -self._dilate(-lesion)  # (B, 1, H, W)
        band = self._dilate(lesion) - lesion  # (B, 1, H, W)
        return Views(images, core * images, band * images)

    def _dilate(self, mask: Tensor) -> Tensor:
        """The maximum over a square, by rows and then by columns; pixels outside count as -inf."""
        reach = self.iterations
        mask = F.max_pool2d(mask, (2 * reach + 1, 1), 1, (reach, 0))  # (B, 1, H, W)
        return F.max_pool2d(mask, (1, 2 * reach + 1), 1, (0, reach))  # (B, 1, H, W)

    def extra_repr(self) -> str:
        """The options, for repr."""
        return f"iterations={self.iterations}"
