"""Permute: the order, and the repr."""

import torch

from mtlkit.nn import Permute


def test_permute():
    assert Permute(0, 2, 3, 1)(torch.zeros(1, 2, 3, 4)).shape == (1, 3, 4, 2)
    assert repr(Permute(0, 2, 3, 1)) == "Permute(0, 2, 3, 1)"
