"""The parts of a transform; test_datasets.py tests their joint effect on image and mask."""

import pytest
import torch
from torchvision import tv_tensors

from mtlkit.data import augmentation, preparation
from mtlkit.data.transforms import AUGMENTATIONS, MEAN, STD


def test_preparation():
    image = tv_tensors.Image(torch.tensor([0, 51, 255], dtype=torch.uint8).expand(3, 1, 3))
    torch.testing.assert_close(
        preparation(normalize=False)(image).as_subclass(torch.Tensor)[0, 0], torch.tensor([0, 0.2, 1.0])
    )


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_keep_shape_and_dtype(name):
    image = tv_tensors.Image(torch.randint(256, (3, 48, 32), dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.ones(1, 48, 32, dtype=torch.uint8))
    for _ in range(5):
        moved, outline = augmentation(name)(image, mask)
        assert (moved.shape, moved.dtype) == (image.shape, torch.uint8)
        assert (outline.shape, outline.dtype) == (mask.shape, torch.uint8)
        assert set(outline.unique().tolist()) <= {0, 1}


def test_normalisation_is_that_of_imagenet():
    image = tv_tensors.Image(torch.full((3, 2, 2), 51, dtype=torch.uint8))
    expected = [(0.2 - mean) / std for mean, std in zip(MEAN, STD, strict=True)]
    torch.testing.assert_close(preparation()(image).as_subclass(torch.Tensor)[:, 0, 0], torch.tensor(expected))
