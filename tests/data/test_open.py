"""Opening a data set: without errors, with errors, and with the bad records skipped."""

import pytest

from mtlkit.data import open_dataset
from mtlkit.errors import DataError, UnusableError


def broken(busi):
    path = busi / "Dataset_BUSI_with_GT" / "benign" / "benign (1)_mask.png"
    path.unlink()
    return path


def test_a_sound_data_set_is_opened_whole(busi):
    catalogue = open_dataset(busi)
    assert (len(catalogue), catalogue.layout) == (12, "busi")
    assert len(open_dataset(busi, classes=("benign", "malignant"))) == 8


def test_an_error_is_raised_or_left_out(busi):
    broken(busi)
    with pytest.raises(UnusableError, match=r"benign \(1\).png: there is no mask") as raised:
        open_dataset(busi)
    assert raised.value.path.name == "benign (1).png"
    assert len(open_dataset(busi, skip_bad=True)) == 11


def test_nothing_left_is_an_error(busi):
    with pytest.raises(DataError, match="it contains no usable image"):
        open_dataset(busi, skip_bad=True, max_pixels=10)
