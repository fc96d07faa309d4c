"""A level of task interaction in one reading and one writing pass over the map: reduce, gate, scale."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from mtlkit.operators._launch import computed
from mtlkit.operators._operator import first_order_only, in_memory, plain, settled, traced, wants_grad
from mtlkit.operators.interaction import gating, level_cpu, reduce, scale
from mtlkit.operators.interaction.gating import Call, Normalisation, Numbers, Results, Sizes
from mtlkit.operators.interaction.types import AlignmentSignals, Signals, TIMParameters, UPAParameters, VarianceSignals

# Backends that run a level in one call where no gradient is wanted. Recorders of calls empty this.
WHOLE: dict[str, Callable[..., tuple[Tensor, ...]]] = {"cpu": level_cpu.forward}


class Level(NamedTuple):
    """The results of a level: the map in its dtype, everything else in the dtype of the computation."""

    seg: Tensor  # (B, C, H, W)
    clf: Tensor  # (B, F)
    mu: Tensor  # (B, C)
    enhanced: Tensor  # (B, F)
    gates: Tensor  # (B, 2)
    signals: Signals


def projection_of(x: Tensor, tim: TIMParameters) -> reduce.Inputs:
    """The map and TIM's projection, the inputs of `reduce`."""
    if tim.proj_weight is None:
        return reduce.Inputs(x, None, None, None)
    weight = tim.proj_weight if tim.proj_weight.dim() == 2 else tim.proj_weight.flatten(1)  # (P, C)
    attn = None if tim.attn_weight is None else tim.attn_weight.flatten()  # (C,)
    return reduce.Inputs(x, weight, tim.proj_bias, attn)


def gather(backend: str, inputs: reduce.Inputs, options: reduce.Options) -> reduce.Reduced:
    """The sums over the map; None for those not requested."""
    mean, variance, energy, pooled = reduce.OPERATOR.run(backend, inputs, options)
    return reduce.Reduced(mean, variance, energy if options.energy else None, None if inputs.weight is None else pooled)


def multiply(backend: str, x: Tensor, factors: Tensor) -> Tensor:
    """The map times its factors; in PyTorch if calls are traced, so that the compiler can fuse it."""
    if traced((x, factors)):
        return scale.scale_torch(x, factors)
    return scale.OPERATOR.run(backend, scale.Inputs(x, factors))[0]


def enhance(backend: str, x: Tensor, factors: Tensor, tim: TIMParameters) -> Tensor:
    """The map times its factors; the map itself if TIM does not change it."""
    return x if tim.gain_weight is None else multiply(backend, x, factors)


def level(
    backend: str,
    x: Tensor,
    f: Tensor,
    tim: TIMParameters,
    upa: UPAParameters,
    tau: float,
    normaliser: Tensor | None,
    norm: Normalisation,
    options: reduce.Options,
    given: Tensor | None = None,
) -> Level:
    """Runs the kernels where possible; given gates, (B, 2), replace UPA's unless they are NaN.

    Raises:
        ValueError: training with a batch of one.
    """
    inputs, f = projection_of(x, tim), f if f.dtype == options.dtype else f.to(options.dtype)
    cut = inputs.weight is None or tim.gain_weight is None
    if cut or given is not None or not _kernels_gate(backend, inputs, f, tim, upa, normaliser, norm):
        sums = gather(backend, inputs, options)
        gated = gating.gating_torch(sums, f, tim, upa, tau, normaliser, norm, given)
        return Level(
            enhance(backend, x, gated.factors, tim), gated.clf, gated.mu, gated.enhanced, gated.gates, gated.signals
        )
    dtype, learnt = options.dtype, (*tim[2:12], *upa)
    if not in_memory((*inputs, f, *learnt, normaliser)):
        inputs, f, normaliser = reduce.Inputs._make(map(plain, inputs)), plain(f), plain(normaliser)
        learnt = tuple(map(plain, learnt))
    weights = [None if t is None else computed(t, dtype) for t in learnt]
    statistics = cast("tuple[Tensor, Tensor]", (tim.norm_mean, tim.norm_var))  # no direction is cut
    running = [computed(plain(t), dtype) for t in statistics]
    sizes = Sizes(
        f.shape[0],
        x.shape[1],
        tim.context_weight.shape[1],  # pyright: ignore[reportOptionalMemberAccess] - no direction is cut
        f.shape[1],
        upa.fc1_bias.shape[0],
        0 if upa.seg_proj is None else upa.seg_proj.shape[0],
    )
    numbers = Numbers(float(tau), float(norm.momentum), float(norm.eps))
    call = Call(sizes, numbers, options.energy, norm.training, dtype == torch.float64)
    passes = _Passes(backend, options, call)
    normaliser = None if normaliser is None else computed(normaliser, dtype)
    tensors = (*inputs, computed(f, dtype), *weights)
    if wants_grad(tensors):
        found = _Level.apply(passes, normaliser, running, *tensors)
    elif backend in WHOLE:
        found = WHOLE[backend](call, inputs, tensors[4], normaliser, running, weights)
    else:
        found = passes.forward(normaliser, running, tensors, False)[0]
    if norm.training:
        for mine, theirs in zip(running, statistics, strict=True):
            if mine is not theirs:
                theirs.copy_(mine)
    seg, clf, mu, enhanced, gates, *signals = found
    return Level(seg, clf, mu, enhanced, gates, (AlignmentSignals if call.alignment else VarianceSignals)(*signals))


def _kernels_gate(
    backend: str,
    inputs: reduce.Inputs,
    f: Tensor,
    tim: TIMParameters,
    upa: UPAParameters,
    normaliser: Tensor | None,
    norm: Normalisation,
) -> bool:
    """Whether the kernels can do everything; otherwise PyTorch computes the gating."""
    if traced((*inputs, f, *tim, *upa, normaliser)):  # first, because a symbolic batch size must not be compared
        return False
    if backend not in gating.BACKENDS or not 0 < f.shape[0] <= gating.BACKENDS[backend].MOST_IMAGES:
        return False
    if norm.group is not None or (norm.training and f.shape[0] == 1):  # PyTorch raises the error for a single image
        return False
    return normaliser is None or not normaliser.requires_grad


class _Saved(NamedTuple):
    """What the backward pass reads, besides what gating saves."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    attn: Tensor | None
    f: Tensor
    normaliser: Tensor | None
    mean: Tensor
    variance: Tensor
    energy: Tensor
    pooled: Tensor
    softmax: Tensor
    signs: Tensor
    factors: Tensor


class _Passes(NamedTuple):
    """The two passes over the map and gating between them, by the kernels of one backend."""

    backend: str
    options: reduce.Options
    call: Call

    def parts(self) -> tuple[Any, Any, ModuleType]:
        """The modules of reduce, scale and gating for one backend."""
        parts = (part.OPERATOR.backends[self.backend] for part in (reduce, scale))
        return *parts, gating.BACKENDS[self.backend]

    def sums(self, mean: Tensor, variance: Tensor, energy: Tensor, pooled: Tensor) -> reduce.Reduced:
        """The sums that gating reads."""
        three = self.call.alignment
        read = None if three else variance, energy if three else None
        return reduce.Reduced(mean, *read, pooled)  # pyright: ignore[reportArgumentType] - three signals do not need the variance

    def forward(
        self, normaliser: Tensor | None, running: list[Tensor], tensors: tuple[Tensor | None, ...], save: bool
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """Final map and vector, mu, enhanced vector, gates and signals; with `save` also what backward reads."""
        reducing, scaling, gates = self.parts()
        inputs, f, weights = reduce.Inputs._make(tensors[:4]), tensors[4], tensors[5:]
        gathered = reducing.forward(inputs, self.options, save)
        factors, clf, results = gates.forward(self.call, self.sums(*gathered[:4]), f, normaliser, running, weights)
        (seg,) = scaling.forward(scale.Inputs(inputs.x, factors), (), False)
        signals = (t for t in results[3:6] if t is not None)
        outputs = seg, clf, results.mu, results.enhanced, results.gates, *signals
        return outputs, (
            *_Saved._make((*inputs, f, normaliser, *gathered, factors)),
            *weights,
            *results,
        ) if save else ()

    def backward(
        self,
        saved: _Saved,
        weights: Sequence[Tensor | None],
        results: Results,
        grads: tuple[Tensor | None, ...],
        wanted: tuple[bool, ...],
    ) -> list[Tensor | None]:
        """The gradients of map, projection, vector and weights: one reading pass, gating, one writing pass."""
        reducing, scaling, gates = self.parts()
        inputs, sums = reduce.Inputs._make(saved[:4]), self.sums(*saved[6:10])
        dseg, dclf, dmu, denhanced, dgates, *dsignals = map(plain, grads)
        dfactors = None if dseg is None else scaling.gradient_of_factors(dseg, saved.x, saved.factors)
        found = (dfactors, dmu, dclf, denhanced, dgates, *dsignals, *[None] * (3 - len(dsignals)))
        read = any(wanted[:4])
        dsums, df = _room(sums, [read] * 4), _room((saved.f,), wanted[4:5])
        dweights = _room(weights, wanted[5:])
        arguments = self.call, sums, saved.f, saved.normaliser, weights, results
        gates.backward(*arguments, [None if g is None else g.contiguous() for g in found], (*dsums, *df), dweights)
        dinputs = (None,) * 4
        if read:
            kept = saved.mean, saved.pooled, saved.softmax, saved.signs
            dinputs = reducing.backward_with(inputs, self.options, kept, dsums, dseg, saved.factors, wanted[:4])
            dinputs = settled(dinputs, inputs, wanted[:4])
        return [*dinputs, *df, *dweights]


def _room(tensors: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Buffers for the gradients that are needed."""
    return [torch.empty_like(t) if t is not None and want else None for t, want in zip(tensors, wanted, strict=True)]


class _Level(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, passes: _Passes, normaliser: Tensor | None, running: list[Tensor], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        outputs, saved = passes.forward(normaliser, running, tensors, True)
        ctx.passes = passes
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        first, last = len(_Saved._fields), -len(Results._fields)
        saved, weights, results = _Saved._make(tensors[:first]), tensors[first:last], Results._make(tensors[last:])
        gradients = ctx.passes.backward(saved, weights, results, grads, ctx.needs_input_grad[3:])
        depends = (*grads, *saved[:5], *weights)
        return None, None, None, *first_order_only("task_interaction", gradients, depends)
