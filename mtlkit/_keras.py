"""Keras' batch normalisation and initial values, for layers that were published in Keras."""

from typing import TypedDict

from torch import nn


class _BatchNorm(TypedDict):
    eps: float
    momentum: float


# Keras' defaults for BatchNormalization; its momentum of 0.99 is 0.01 in PyTorch's terms.
BATCH_NORM: _BatchNorm = {"eps": 1e-3, "momentum": 0.01}


def init_as_keras(module: nn.Module) -> None:
    """For `Module.apply`: initialises kernels by Glorot's uniform distribution, and biases with 0."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
