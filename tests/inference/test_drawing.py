"""Overlays: a line inside the mask, a halo around it, and all other pixels unchanged."""

import numpy as np
import pytest

from mtlkit.inference import draw_overlay

LINE = (230, 159, 0)


def overlay(mask, value=200):
    return draw_overlay(np.full((*mask.shape, 3), value, np.uint8), mask)


@pytest.mark.parametrize(("size", "width"), [(60, 1), (500, 2), (1000, 4)])
def test_line_and_halo(size, width):
    mask = np.zeros((size, size), dtype=bool)
    mask[20:40, 10:50] = True
    drawn = overlay(mask)
    line = (drawn == LINE).all(2)
    assert line[20 : 20 + width, 10:50].all()
    assert not (line & ~mask).any()
    assert not line[20 + width : 40 - width, 10 + width : 50 - width].any()
    dark = (drawn == 90).all(2)
    assert dark[20 - width : 20, 10:50].all()
    assert not (dark & line).any()
    far = np.ones_like(mask)
    far[20 - width : 40 + width, 10 - width : 50 + width] = False
    assert (drawn[far] == 200).all()
    assert (drawn[30, 30] == 200).all()


def test_nothing_and_everything():
    for mask in (np.zeros((9, 9), dtype=bool), np.ones((9, 9), dtype=bool)):
        assert (overlay(mask) == 200).all()


def test_a_mask_at_the_border_has_no_line_there():
    mask = np.zeros((20, 20), dtype=bool)
    mask[:10] = True
    line = (overlay(mask) == LINE).all(2)
    assert line[9].all()
    assert line.sum() == 20


def test_image_is_left_as_it_is():
    image, mask = np.zeros((9, 9, 3), np.uint8), np.eye(9, dtype=bool)
    draw_overlay(image, mask)
    assert not image.any()
    with pytest.raises(ValueError, match=r"mask: expected shape \(9, 9\), that of the image, got \(8, 9\)"):
        draw_overlay(image, mask[:8])
