"""gating by the C++ kernels."""

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import address, check
from mtlkit.operators.interaction.gating.signature import WEIGHTS, Call, Results, new_results
from mtlkit.operators.interaction.reduce import Reduced

MOST_IMAGES = 1 << 40


DWEIGHTS = tuple(f"d{name}" for name in WEIGHTS)


def _arguments(call: Call, sums: Reduced, f, normaliser, running, weights, results: Results) -> dict[str, object]:
    """What the kernels of both directions take."""
    mean, variance, energy, pooled = map(address, sums)
    mu, enhanced, gates, *signals, kept = map(address, results)
    return {
        "sizes": call.sizes,
        "tau": call.numbers.tau,
        "momentum": call.numbers.momentum,
        "eps": call.numbers.eps,
        "alignment": call.alignment,
        "training": call.training,
        "use_double": call.use_double,
        "threads": torch.get_num_threads(),
        "mean": mean,
        "variance": variance,
        "energy": energy,
        "pooled": pooled,
        "f": address(f),
        "normaliser": address(normaliser),
        "norm_mean": address(running[0]),
        "norm_var": address(running[1]),
        **dict(zip(WEIGHTS, map(address, weights), strict=True)),
        "mu": mu,
        "enhanced": enhanced,
        "gates": gates,
        "signals": tuple(signals),
        "kept": kept,
    }


def forward(call: Call, sums: Reduced, f, normaliser, running, weights) -> tuple[Tensor, Tensor, Results]:
    """Factors, final vector and results; in training also writes the running statistics."""
    factors, clf, results = new_results(call, f)
    arguments = _arguments(call, sums, f, normaliser, running, weights, results)
    check(_native.C.interaction_gating_forward(**arguments, factors=address(factors), clf=address(clf)))
    return factors, clf, results


def backward(call: Call, sums: Reduced, f, normaliser, weights, results: Results, grads, dinputs, dweights) -> None:
    """Writes the gradients of sums and f, and of the weights, where there is room for them.

    `grads` are those of factors, mu, final vector, enhanced vector, gates and three signals, None for zeros.
    """
    arguments = _arguments(call, sums, f, normaliser, (None, None), weights, results)
    dfactors, dmu, dclf, denhanced, dgates, *dsignals = map(address, grads)
    dmean, dvariance, denergy, dpooled, df = map(address, dinputs)
    status = _native.C.interaction_gating_backward(
        **arguments,
        dfactors=dfactors,
        dmu=dmu,
        dclf=dclf,
        denhanced=denhanced,
        dgates=dgates,
        dsignals=tuple(dsignals),
        dmean=dmean,
        dvariance=dvariance,
        denergy=denergy,
        dpooled=dpooled,
        df=df,
        **dict(zip(DWEIGHTS, map(address, dweights), strict=True)),
    )
    check(status)
