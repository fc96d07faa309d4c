"""Resizing: bitwise torchvision's results for images and labels, and for maps up to rounding."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from mtlkit.data.resizing import resize, resize_map, resize_nearest

SIZES = [
    (47, 61, 32, 32),
    (500, 333, 64, 64),
    (7, 5, 32, 40),
    (1, 1, 8, 8),
    (2, 900, 5, 3),
    (64, 32, 64, 16),
    (33, 29, 3, 2),
]


@pytest.mark.parametrize("size", SIZES)
def test_images_are_resized_as_by_torchvision(size):
    """On a CPU with AVX2; torchvision computes in float32 on others, and rounds only once."""
    height, width, rows, columns = size
    pixels = np.random.default_rng(0).integers(0, 256, (3, height, width)).astype(np.uint8)
    found = resize(pixels, rows, columns)
    expected = TF.resize(torch.from_numpy(pixels), [rows, columns], antialias=True).numpy()
    assert found.dtype == np.uint8
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        np.testing.assert_array_equal(found, expected)
    assert abs(found.astype(int) - expected).max() <= 1
    for channel in range(3):
        pillow = Image.fromarray(pixels[channel]).resize((columns, rows), Image.Resampling.BILINEAR)
        assert abs(found[channel].astype(int) - np.asarray(pillow)).max() <= 1


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("old", [1, 31, 224, 3000])
def test_what_is_of_one_value_stays_so(old, value):
    """The rounded weights never add up to more than a byte can hold."""
    for new in (1, 7, 224, 448):
        assert (resize(np.full((1, old, 2), value, np.uint8), new, 2) == value).all()


def test_views_of_other_strides():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    turned = pixels.transpose(2, 0, 1)
    np.testing.assert_array_equal(resize(turned, 16, 16), resize(turned.copy(), 16, 16))
    np.testing.assert_array_equal(resize(pixels[None, ..., 0], 16, 16)[0], resize(turned, 16, 16)[0])
    assert resize(turned, 40, 30) is turned


@pytest.mark.parametrize("size", SIZES)
def test_labels_are_resized_as_by_torchvision(size):
    height, width, rows, columns = size
    labels = np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.uint8)
    expected = TF.resize(torch.from_numpy(labels)[None], [rows, columns], InterpolationMode.NEAREST)[0]
    np.testing.assert_array_equal(resize_nearest(labels, rows, columns), expected.numpy())


@pytest.mark.parametrize("size", SIZES)
def test_maps(size):
    height, width, rows, columns = size
    values = np.random.default_rng(0).random((height, width), np.float32)
    expected = TF.resize(torch.from_numpy(values)[None].double(), [rows, columns], antialias=True)[0]
    np.testing.assert_allclose(resize_map(values, rows, columns), expected.numpy(), atol=1e-6)
