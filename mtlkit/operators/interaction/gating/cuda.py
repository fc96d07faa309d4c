"""gating by the CUDA kernels."""

from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import address, check_cuda, launching
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


def forward(
    call: Call, sums: Reduced, f: Tensor, normaliser: Tensor | None, running: Tensors, weights: Tensors
) -> tuple[Tensor, Tensor, Results]:
    """Factors, final vector and results; in training it also updates the running statistics."""
    factors, clf, results = new_results(call, f)
    with launching(f) as stream:
        normalised = f.new_empty(f.shape)
        status = _native.C.cuda_interaction_gating_forward(
            **arguments_of(call, sums, f, normaliser, running, weights, results),
            normalised=address(normalised),
            factors=address(factors),
            clf=address(clf),
            stream=stream,
        )
        check_cuda(status)
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
    B, C, _, F, _, Q = call.sizes
    with launching(f) as stream:
        scratch = f.new_empty(B * (4 * C + 6 * F + 2 * Q + 5))
        status = _native.C.cuda_interaction_gating_backward(
            **arguments_of(call, sums, f, normaliser, (None, None), weights, results),
            scratch=address(scratch),
            **gradients_of(grads, dinputs, dweights),
            stream=stream,
        )
        check_cuda(status)
