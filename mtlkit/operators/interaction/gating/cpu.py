"""gating by the C++ kernels."""

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import address, check
from mtlkit.operators.interaction.gating.signature import (
    Call,
    Results,
    Tensors,
    arguments_of,
    gradients_of,
    new_results,
)
from mtlkit.operators.interaction.reduce import Reduced

MOST_IMAGES = 1 << 40


def _computation(call: Call) -> dict[str, object]:
    return {"use_double": call.use_double, "threads": torch.get_num_threads()}


def forward(
    call: Call, sums: Reduced, f: Tensor, normaliser: Tensor | None, running: Tensors, weights: Tensors
) -> tuple[Tensor, Tensor, Results]:
    """Factors, final vector and results; in training it also updates the running statistics."""
    factors, clf, results = new_results(call, f)
    status = _native.C.interaction_gating_forward(
        **arguments_of(call, sums, f, normaliser, running, weights, results),
        **_computation(call),
        factors=address(factors),
        clf=address(clf),
    )
    check(status)
    return factors, clf, results


def backward(
    call: Call,
    sums: Reduced,
    f: Tensor,
    normaliser: Tensor | None,
    weights: Tensors,
    results: Results,
    grads: Tensors,
    dinputs: Tensors,
    dweights: Tensors,
) -> None:
    """Writes the gradients of sums and f, and of those weights that have a buffer for them.

    `grads` are the gradients of factors, mu, final vector, enhanced vector, gates and three signals, None for zeros.
    """
    status = _native.C.interaction_gating_backward(
        **arguments_of(call, sums, f, normaliser, (None, None), weights, results),
        **_computation(call),
        **gradients_of(grads, dinputs, dweights),
    )
    check(status)
