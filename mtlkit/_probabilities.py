"""Probabilities from logits in NumPy, because prediction from ONNX files must not need PyTorch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[Any]:
    """Returns the softmax of logits (..., K) divided by the temperature, in the dtype of the logits.

    Example:
        >>> import numpy as np
        >>> from mtlkit._probabilities import softmax
        >>> softmax(np.array([0.0, np.log(9.0)]), 2.0).round(3).tolist()
        [0.25, 0.75]
    """
    powers = np.exp((logits - logits.max(-1, keepdims=True)) / temperature)
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    """Returns the sigmoid of each logit, in the dtype of the logits.

    Example:
        >>> import numpy as np
        >>> from mtlkit._probabilities import sigmoid
        >>> sigmoid(np.array([-1000.0, 0.0, 1000.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    with np.errstate(over="ignore"):  # 1 / inf is 0
        return 1 / (1 + np.exp(-logits))
