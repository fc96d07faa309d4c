"""gating by the Triton kernels, which are loaded at the first call."""

from torch import Tensor

from mtlkit.operators.interaction.gating.signature import Call, Results, Tensors, new_results
from mtlkit.operators.interaction.reduce import Reduced

MOST_IMAGES = 64  # a program holds a tile of all images


def forward(
    call: Call, sums: Reduced, f: Tensor, normaliser: Tensor | None, running: Tensors, weights: Tensors
) -> tuple[Tensor, Tensor, Results]:
    """Factors, final vector and results; in training it also updates the running statistics."""
    from mtlkit.kernels.interaction import gating as kernels

    factors, clf, results = new_results(call, f)
    kernels.forward(*call[:4], sums, f, normaliser, running, weights, results, factors, clf)
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
    from mtlkit.kernels.interaction import gating as kernels

    kernels.backward(*call[:4], sums, f, normaliser, weights, results, grads, dinputs, dweights)
