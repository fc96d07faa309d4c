"""Shared code of the networks: checks, padding, rates."""

import pytest
import torch

from mtlkit.models import _common


@pytest.mark.parametrize(("size", "padded"), [((64, 64), (64, 64)), ((33, 95), (64, 96)), ((1, 32), (32, 32))])
def test_padding_adds_zeros_at_the_bottom_and_on_the_right(size, padded):
    images = torch.rand(2, 3, *size)
    found = _common.pad_to_multiple(images, 32)
    assert found.shape == (2, 3, *padded)
    assert torch.equal(found[:, :, : size[0], : size[1]], images)
    assert not found[:, :, size[0] :].any()
    assert not found[:, :, :, size[1] :].any()


def test_drop_path_rates_rise_from_block_to_block():
    rates = _common.drop_path_rates((2, 1, 2), 0.4)
    assert [len(stage) for stage in rates] == [2, 1, 2]
    assert [rate for stage in rates for rate in stage] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert _common.drop_path_rates((1,), 0.4) == [[0]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (((2,), (8, 16), 2, 3), "depths: expected 2 numbers"),
        (((2, 0), (8, 16), 2, 3), "depths"),
        (((2, 2), (8, 24), 2, 3), "dims: expected each to be twice"),
        (((2, 2), (8, 16), 0, 3), "num_classes: expected at least 1, got 0"),
    ],
)
def test_stages_that_do_not_fit(arguments, words):
    with pytest.raises(ValueError, match=words):
        _common.check_stages(*arguments)


def test_images():
    _common.check_images(torch.zeros(0, 3, 32, 40), 3, 32)
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 3, H, W\) with H and W at least 32"):
        _common.check_images(torch.zeros(1, 3, 31, 40), 3, 32)
