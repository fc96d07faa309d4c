"""The arguments and results of gating, and how its kernels are called."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from mtlkit._distributed import Group
from mtlkit.operators._launch import address
from mtlkit.operators.interaction.types import Signals, TIMParameters, UPAParameters

Tensors = Sequence[Tensor | None]  # None for one that is not there

# the learned tensors of gating, by their names in mtlkit._C
WEIGHTS = (*TIMParameters._fields[2:12], *UPAParameters._fields)
_DWEIGHTS = tuple(f"d{name}" for name in WEIGHTS)


class Normalisation(NamedTuple):
    """Settings of TIM's batch normalisation."""

    training: bool
    momentum: float
    eps: float
    group: Group | None = None  # process group whose batches count as one in training


class Gated(NamedTuple):
    """The results, in the dtype of the computation."""

    factors: Tensor  # (B, C), 1 + w_seg (mu - 1)
    mu: Tensor  # (B, C)
    clf: Tensor  # (B, F)
    enhanced: Tensor  # (B, F)
    gates: Tensor  # (B, 2)
    signals: Signals


class Sizes(NamedTuple):
    """Of a call of the kernels."""

    batch: int
    channels: int
    projected: int
    features: int
    hidden: int
    queries: int


class Numbers(NamedTuple):
    """Of a call of the kernels."""

    tau: float
    momentum: float
    eps: float


class Call(NamedTuple):
    """The arguments of a kernel call that are not tensors."""

    sizes: Sizes
    numbers: Numbers
    alignment: bool  # whether there are three signals
    training: bool
    use_double: bool


class Results(NamedTuple):
    """What the forward kernels write and the backward kernels read, besides the factors and the final vector."""

    mu: Tensor
    enhanced: Tensor
    gates: Tensor
    first: Tensor  # signals, (B,) each
    second: Tensor
    third: Tensor | None
    kept: Tensor


def new_results(call: Call, like: Tensor) -> tuple[Tensor, Tensor, Results]:
    """Factors, final vector and results, uninitialised."""
    B, C, _, F, _, Q = call.sizes
    results = Results(
        like.new_empty(B, C),
        like.new_empty(B, F),
        like.new_empty(B, 2),
        like.new_empty(B),
        like.new_empty(B),
        like.new_empty(B) if call.alignment else None,
        like.new_empty(2 * B * (F + C + Q) + 2 * F),
    )
    return like.new_empty(B, C), like.new_empty(B, F), results


def arguments_of(
    call: Call,
    sums: Iterable[Tensor | None],
    f: Tensor,
    normaliser: Tensor | None,
    running: Tensors,
    weights: Tensors,
    results: Results,
) -> dict[str, object]:
    """The arguments shared by the forward and backward kernels of mtlkit._C; `sums` are the results of reduce."""
    mean, variance, energy, pooled = map(address, sums)
    mu, enhanced, gates, *signals, kept = map(address, results)
    return {
        "sizes": call.sizes,
        "tau": call.numbers.tau,
        "momentum": call.numbers.momentum,
        "eps": call.numbers.eps,
        "alignment": call.alignment,
        "training": call.training,
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


def gradients_of(grads: Tensors, dinputs: Tensors, dweights: Tensors) -> dict[str, object]:
    """The additional backward arguments: gradients of factors, mu, vectors, gates and signals, and output buffers."""
    dfactors, dmu, dclf, denhanced, dgates, *dsignals = map(address, grads)
    dmean, dvariance, denergy, dpooled, df = map(address, dinputs)
    return {
        "dfactors": dfactors,
        "dmu": dmu,
        "dclf": dclf,
        "denhanced": denhanced,
        "dgates": dgates,
        "dsignals": tuple(dsignals),
        "dmean": dmean,
        "dvariance": dvariance,
        "denergy": denergy,
        "dpooled": dpooled,
        "df": df,
        **dict(zip(_DWEIGHTS, map(address, dweights), strict=True)),
    }
