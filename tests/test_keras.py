"""Keras' initial values."""

import pytest
from torch import nn

from mtlkit._keras import init_as_keras


@pytest.mark.parametrize(
    ("layer", "ahead", "behind"),
    [
        (nn.Linear(60, 90), 60, 90),
        (nn.Conv2d(16, 24, 3), 16 * 9, 24 * 9),
        (nn.ConvTranspose2d(16, 24, 3), 16 * 9, 24 * 9),
    ],
)
def test_kernels_are_uniform_as_glorots_and_biases_zero(layer, ahead, behind):
    layer.apply(init_as_keras)
    bound = (6 / (ahead + behind)) ** 0.5
    assert 0.95 * bound < layer.weight.abs().max() <= bound
    assert not layer.bias.any()


def test_norms_stay():
    norm = nn.BatchNorm2d(4)
    nn.init.constant_(norm.weight, 3.0)
    norm.apply(init_as_keras)
    assert (norm.weight == 3).all()
