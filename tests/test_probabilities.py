import numpy as np
import pytest
from scipy.special import expit
from scipy.special import softmax as scipy_softmax

from mtlkit._probabilities import sigmoid, softmax


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_softmax(dtype, temperature):
    logits = np.random.default_rng(0).normal(0, 30, (3, 2, 5)).astype(dtype)
    found = softmax(logits, temperature)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, scipy_softmax(logits / dtype(temperature), axis=-1), rtol=1e-4, atol=1e-30)


def test_sigmoid():
    logits = np.array([-1e4, -3, 0, 2, 1e4], np.float32)
    found = sigmoid(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expit(logits), rtol=1e-6, atol=1e-38)
