"""NumPy items: bitwise those of the torch data sets that networks are trained with, without importing torch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file
from torchvision import tv_tensors

from mtlkit.data import LesionDataset, MammographyDataset, Record, open_dataset, preparation
from mtlkit.data.items import MEAN, STD, read_lesion, read_views, stack_views, to_range
from mtlkit.errors import DataError

SCALES = {True: (MEAN, STD), False: (None, None)}


@pytest.mark.parametrize("normalize", [True, False])
def test_every_value_is_as_in_training(normalize):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16).repeat(3, 0)
    expected = preparation(normalize=normalize)(tv_tensors.Image(torch.from_numpy(pixels)))
    np.testing.assert_array_equal(to_range(pixels, *SCALES[normalize]), expected.numpy())


@pytest.mark.parametrize("normalize", [True, False])
def test_lesions_are_as_in_training(busi, normalize):
    records = open_dataset(busi).records
    data = LesionDataset(records, 40, normalize=normalize)
    for record, item in zip(records, data, strict=False):
        found = read_lesion(record, 40)
        np.testing.assert_array_equal(to_range(found.image, *SCALES[normalize]), item["image"].numpy())
        np.testing.assert_array_equal(found.mask, item["mask"].numpy())
        assert found.loaded.pixels.dtype == np.uint8


@pytest.mark.parametrize("normalize", [True, False])
def test_views_are_as_in_training(cmmd, normalize):
    exams = open_dataset(cmmd).records
    data = MammographyDataset(exams, 32, normalize=normalize)
    for exam, item in zip(exams, data, strict=False):
        views, present = stack_views(read_views(exam, 32), *SCALES[normalize])
        np.testing.assert_array_equal(views, item["views"].numpy())
        np.testing.assert_array_equal(present, item["present"].numpy())


def test_errors_are_those_of_the_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"a.png: cannot be read as an image"):
        read_lesion(Record("a", tmp_path / "a.png", -1, (), "a"), 32)


def test_the_spacing_is_that_of_the_resized_image():
    path = Path(get_testdata_file("CT_small.dcm"))  # 128 x 128, 0.661468 mm
    found = read_lesion(Record("a", path, 0, (), "a"), 32)
    assert found.spacing == pytest.approx((4 * 0.661468, 4 * 0.661468))


def test_a_picture_has_no_spacing(tmp_path):
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "a.png")
    assert np.isnan(read_lesion(Record("a", tmp_path / "a.png", 0, (), "a"), 32).spacing).all()
