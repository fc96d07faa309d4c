"""SeparableConv: Keras' initial values."""

from mtlkit.nn import SeparableConv


def test_initial_values_are_those_of_keras():
    layer = SeparableConv(64, 128)
    bound = (6 / (9 * 64 + 9)) ** 0.5  # Keras: fan-in 9 C of a channel, fan-out 9
    assert 0.95 * bound < layer.depthwise.weight.abs().max() <= bound
    bound = (6 / (64 + 128)) ** 0.5
    assert 0.95 * bound < layer.pointwise.weight.abs().max() <= bound
    assert not layer.pointwise.bias.any()
