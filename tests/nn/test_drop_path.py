"""DropPath: modes, expectation, gradients."""

import pytest
import torch

from mtlkit.nn import DropPath


def test_training_drops_samples_and_keeps_the_mean():
    x = torch.rand(2000, 2, 3)
    y = DropPath(0.25).train()(x)
    dropped = (y == 0).flatten(1).all(1)
    torch.testing.assert_close(y[~dropped], x[~dropped] / 0.75)
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.05)
    assert y.mean().item() == pytest.approx(x.mean().item(), rel=0.05)


@pytest.mark.parametrize("layer", [DropPath(0.25).eval(), DropPath(0.0).train()])
def test_does_nothing_otherwise(layer):
    x = torch.rand(4, 2)
    assert layer(x) is x


def test_gradient_and_dtype():
    x = torch.ones(100, 2, dtype=torch.bfloat16, requires_grad=True)
    y = DropPath(0.5).train()(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(x.grad, y)


def test_bad_options():
    for p in (-0.1, 1.0):
        with pytest.raises(ValueError, match="p: expected a probability"):
            DropPath(p)
    assert repr(DropPath(0.1)) == "DropPath(p=0.1)"
