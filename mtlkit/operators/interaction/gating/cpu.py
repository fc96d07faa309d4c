"""gating by the C++ kernels."""

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import address, check
from mtlkit.operators.interaction.gating.signature import Call, Results, new_results
from mtlkit.operators.interaction.reduce import Reduced

MOST_IMAGES = 1 << 40


def _addresses(tensors) -> tuple[int, ...]:
    return tuple(map(address, tensors))


def _arguments(call: Call, sums: Reduced, f, normaliser, running, weights, results: Results) -> tuple:
    """What the kernels of both directions take first."""
    inputs = (*sums, f, normaliser, *running)
    return (*call, torch.get_num_threads(), _addresses(inputs), _addresses(weights), _addresses(results))


def forward(call: Call, sums: Reduced, f, normaliser, running, weights) -> tuple[Tensor, Tensor, Results]:
    """Factors, final vector and results; in training also writes the running statistics."""
    factors, clf, results = new_results(call, f)
    arguments = _arguments(call, sums, f, normaliser, running, weights, results)
    check(_native.C.interaction_gating_forward(*arguments, address(factors), address(clf)))
    return factors, clf, results


def backward(call: Call, sums: Reduced, f, normaliser, weights, results: Results, grads, dinputs, dweights) -> None:
    """Writes the gradients of sums and f, and of the weights, where there is room for them.

    `grads` are those of factors, mu, final vector, enhanced vector, gates and three signals, None for zeros.
    """
    arguments = _arguments(call, sums, f, normaliser, (None, None), weights, results)
    gradients = map(_addresses, (grads, dinputs, dweights))
    check(_native.C.interaction_gating_backward(*arguments, *gradients))
