"""One rule defines the meaning of stored numbers."""

from itertools import pairwise

import numpy as np
import pytest

from mtlkit.data.pixels import Scale, choose_scale, eight_bits, extent, joint, render


def test_no_jump_between_depths():
    whites = [choose_scale((0, top), np.dtype("uint16"), 16).white for top in range(65536)]
    for top, (before, after) in enumerate(pairwise(whites)):
        assert before <= after <= 2 * before + 1
        assert top <= before
        assert before == 255 or before < 2 * top + 2


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_few_bits_are_as_they_are(bits):
    assert choose_scale((0, 0), np.dtype("uint8"), bits) == Scale(0, 2**bits - 1)


@pytest.mark.parametrize(
    ("dtype", "span", "white"),
    [
        ("float32", None, 1),
        ("float32", (0, 0), 1),
        ("float32", (0, 1.0000001), 1),
        ("float64", (0, 254.7), 255),
        ("float32", (0, 255.5), 511),
        ("uint32", (0, 2**31), 2**32 - 1),
        ("int32", (0, 0), 255),
    ],
)
def test_other_types(dtype, span, white):
    assert choose_scale(span, np.dtype(dtype), 8 * np.dtype(dtype).itemsize)[:2] == (0, white)


def test_what_is_hidden_or_no_number_takes_no_part():
    values = np.array([[1.0, np.nan], [np.inf, 5.0]])
    assert extent(values) == (1, 5)
    assert extent(values, values == 5) == (1, 1)
    assert extent(values, np.ones((2, 2), bool)) is None
    assert extent(np.zeros((0, 3), np.uint8)) is None
    assert joint([None, (1, 2), (0, 1)]) == (0, 2)
    assert joint([None]) is None


def test_all_of_eight_bits_come_back():
    values = np.arange(256, dtype=np.uint8)[None]
    assert np.array_equal(eight_bits(render(values, Scale(0, 255))), values)
    assert np.array_equal(eight_bits(render(values, Scale(0, 255), inverted=True)), 255 - values)
    assert not render(values, Scale(3, 3)).any()
