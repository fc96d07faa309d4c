"""LesionViews: the square of 11 x 11, borders, contents of each view, dtypes of masks, errors."""

import pytest
import torch

from mtlkit.nn import LesionViews


def step(mask: torch.Tensor, erode: bool) -> torch.Tensor:
    """One 3 x 3 step, pixel by pixel: pixels outside count as lesion in an erosion, as background in a dilation."""
    out = torch.empty_like(mask)
    height, width = mask.shape
    for y in range(height):
        for x in range(width):
            square = mask[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            out[y, x] = square.min() if erode else square.max()
    return out


@pytest.fixture
def masks():
    """A rectangle, a rectangle in a corner, noise, nothing, everything: (5, 1, 23, 31)."""
    masks = torch.zeros(5, 1, 23, 31)
    masks[0, 0, 4:19, 6:25] = 1
    masks[1, 0, :14, 18:] = 1
    masks[2, 0] = (torch.rand(23, 31) > 0.1).float()
    masks[4] = 1
    return masks


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_equals_repeated_small_steps(masks, iterations):
    views = LesionViews(iterations)(torch.ones(5, 2, 23, 31), masks)
    for i, mask in enumerate(masks[:, 0]):
        eroded, dilated = mask, mask
        for _ in range(iterations):
            eroded, dilated = step(eroded, True), step(dilated, False)
        for channel in range(2):
            assert torch.equal(views.tumor[i, channel], eroded)
            assert torch.equal(views.boundary[i, channel], dilated - mask)


def test_core_lies_within_the_mask_and_the_band_outside(masks):
    images = torch.rand(5, 3, 23, 31) + 0.1
    views = LesionViews()(images, masks)
    assert views.image is images
    assert torch.equal(views.tumor, torch.where(views.tumor > 0, images, 0))
    assert not (views.tumor * (1 - masks)).any()
    assert not (views.boundary * masks).any()
    assert views.tumor[0].any()
    assert views.boundary[0].any()


@pytest.mark.parametrize("scale", [torch.bool, torch.uint8, torch.float64, torch.bfloat16])
def test_masks_of_any_dtype(masks, scale):
    images = torch.rand(5, 3, 23, 31)
    expected = LesionViews()(images, masks)
    given = (masks * 255).to(scale) if scale == torch.uint8 else masks.to(scale)
    for got, view in zip(LesionViews()(images, given), expected, strict=True):
        assert torch.equal(got, view)
        assert got.dtype == images.dtype


def test_gradients_reach_the_images_only_where_the_views_are(masks):
    images = torch.rand(5, 3, 23, 31, requires_grad=True)
    views = LesionViews()(images, masks)
    views.tumor.sum().backward()
    assert torch.equal(images.grad, (views.tumor > 0).float())


def test_errors():
    images = torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match="iterations: expected a number above 0, got 0"):
        LesionViews(0)
    with pytest.raises(ValueError, match=r"masks: expected shape \(B, 1, H, W\) = \(2, 1, 8, 8\), got \(2, 8, 8\)"):
        LesionViews()(images, torch.zeros(2, 8, 8))
    with pytest.raises(TypeError, match="masks: expected a tensor, got NoneType"):
        LesionViews()(images, None)
    with pytest.raises(TypeError, match="images: expected float32"):
        LesionViews()(images.byte(), torch.zeros(2, 1, 8, 8))


def test_repr():
    assert repr(LesionViews(iterations=3)) == "LesionViews(iterations=3)"
