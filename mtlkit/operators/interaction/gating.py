"""Task interaction between its two passes over the map: from sums to the factors of its channels.

The formulas are in the docstring of the package. The vectors are small and the layers many, so that most of the
time of PyTorch's operations would go into calling them. Kernels take many at once; where calls are traced, PyTorch
computes.
"""

from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit import _native
from mtlkit._distributed import Group, batch_norm_over, mean_over
from mtlkit.operators._launch import address, check, computed
from mtlkit.operators._operator import first_order_only, traced, wants_grad
from mtlkit.operators.interaction import kernels as interaction_kernels
from mtlkit.operators.interaction.types import Signals, ThreeSignals, TIMParameters, UPAParameters, VarianceSignals

WEIGHTS = (*TIMParameters._fields[2:12], *UPAParameters._fields)  # as csrc/cpu/interaction/gating.h orders them
MOST_IMAGES = {"cpu": 1 << 40, "triton": 64}  # that the kernels hold


class Sums(NamedTuple):
    """What is known of a map."""

    mean: Tensor  # (B, C)
    variance: Tensor  # (B, C), of the population
    energy: Tensor | None  # (B,), for three signals
    pooled: Tensor  # (B, P)


class Normalisation(NamedTuple):
    """How TIM normalises over the batch."""

    training: bool
    momentum: float
    eps: float
    group: Group | None = None  # processes whose batches count as one, in training


class Vectors(NamedTuple):
    """What becomes of them, in the type of computation."""

    factors: Tensor  # (B, C), 1 + w_seg (mu - 1)
    mu: Tensor  # (B, C)
    clf: Tensor  # (B, F)
    enhanced: Tensor  # (B, F)
    gates: Tensor  # (B, 2)
    signals: Signals


# --- in PyTorch -------------------------------------------------------------------------------------------------------


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _batch_norm(x: Tensor, p: TIMParameters, norm: Normalisation) -> Tensor:
    """Batch normalisation in the dtype of x, whatever that of the running statistics is."""
    if norm.group is not None:
        return batch_norm_over(
            norm.group, x, p.norm_mean, p.norm_var, p.norm_weight, p.norm_bias, norm.momentum, norm.eps
        )
    running = p.norm_mean.to(x.dtype), p.norm_var.to(x.dtype)
    y = F.batch_norm(x, *running, p.norm_weight.to(x.dtype), p.norm_bias.to(x.dtype), *norm[:3])
    if norm.training and p.norm_mean.dtype != x.dtype:
        p.norm_mean.copy_(running[0])
        p.norm_var.copy_(running[1])
    return y


def tim_vectors(
    mean: Tensor, pooled: Tensor, f: Tensor, p: TIMParameters, tau: float, norm: Normalisation
) -> tuple[Tensor, Tensor]:
    """mu, (B, C), and the enhanced vector, (B, F), from the map's means and its pooled projection."""
    f = f.to(mean.dtype)  # (B, F)
    context = F.relu(_linear(pooled, p.context_weight, p.context_bias))  # (B, F)
    context = _batch_norm(context, p, norm)  # (B, F)
    enhanced = f + torch.sigmoid(_linear(context, p.clf_gate_weight, p.clf_gate_bias)) * context  # (B, F)
    gain = torch.sigmoid(_linear(f, p.gain_weight, p.gain_bias))  # (B, C)
    gate = torch.sigmoid(_linear(mean, p.seg_gate_weight, p.seg_gate_bias))  # (B, C)
    return 1 + tau * gate * gain, enhanced


def variance_of(f: Tensor) -> Tensor:
    """Of the population, (B,)."""
    return (f - f.mean(1, keepdim=True)).square().mean(1)


def alignment_of(shift: Tensor, f_shift: Tensor, seg_proj: Tensor, clf_proj: Tensor) -> Tensor:
    """Cosine of the projected shifts of map, (B, C), and vector, (B, F); a length below 1e-6 counts as that."""
    seg, clf = _linear(shift, seg_proj), _linear(f_shift, clf_proj)  # (B, Q)
    seg, clf = (t * t.square().sum(1, keepdim=True).clamp(min=1e-12).rsqrt() for t in (seg, clf))
    return (seg * clf).sum(1)  # (B,)


def gates_of(signals: Signals, p: UPAParameters, normaliser: Tensor | None, group: Group | None = None) -> Tensor:
    """The gates, (B, 2)."""
    u = torch.stack(tuple(signals), 1)  # (B, 2 or 3)
    if len(signals) == 2:
        if normaliser is None:
            normaliser = u.mean(0) if group is None else mean_over(group, u)[0]
        u = u / (normaliser.to(u.dtype) + 1e-8)
    logits = _linear(F.relu(_linear(u, p.fc1_weight, p.fc1_bias)), p.fc2_weight, p.fc2_bias)  # (B, 2)
    return torch.softmax(logits, 1) if len(signals) == 2 else torch.sigmoid(logits)


def mix(base: Tensor, enhanced: Tensor, weight: Tensor) -> Tensor:
    """Base + weight (enhanced - base), weight (B,), in the dtype of base."""
    weight = weight.reshape(-1, *[1] * (base.dim() - 1))
    return (base + weight * (enhanced - base)).to(base.dtype)


def vectors_torch(
    sums: Sums,
    f: Tensor,
    tim: TIMParameters,
    upa: UPAParameters,
    tau: float,
    normaliser: Tensor | None,
    norm: Normalisation,
) -> Vectors:
    """The formulas, one after the other; f in the type of computation."""
    mu, enhanced = tim_vectors(sums.mean, sums.pooled, f, tim, tau, norm)
    spread = variance_of(enhanced)
    if upa.seg_proj is None:
        signals = VarianceSignals((mu.square() * sums.variance).mean(1), spread)
    else:
        alignment = alignment_of((mu - 1) * sums.mean, enhanced - f, upa.seg_proj, upa.clf_proj)
        signals = ThreeSignals(alignment, sums.energy, torch.log1p(spread))
    gates = gates_of(signals, upa, normaliser, norm.group)
    return Vectors(1 + gates[:, :1] * (mu - 1), mu, mix(f, enhanced, gates[:, 1]), enhanced, gates, signals)


# --- the kernel -------------------------------------------------------------------------------------------------------


class _Call(NamedTuple):
    """What a call is made with, but for its tensors."""

    sizes: tuple[int, ...]  # B, C, P, F, hidden, Q
    numbers: tuple[float, float, float]  # tau, momentum, eps
    three: bool
    training: bool
    use_double: bool

    def arguments(self, sums: Sums, f, normaliser, running, weights, kept) -> tuple:
        inputs = (*sums, f, normaliser, *running)
        return (*self, torch.get_num_threads(), *(tuple(map(address, ts)) for ts in (inputs, weights, kept)))


def _triton(sum_: Tensor) -> ModuleType | None:
    """The Triton kernels, which serve what lies on a GPU."""
    if interaction_kernels.triton_kernels(sum_) is None:
        return None
    from mtlkit.kernels.interaction import gating  # not before it is needed: it loads Triton

    return gating


def _forward(call: _Call, normaliser, running, mean, variance, energy, pooled, f, *weights) -> tuple[tuple, tuple]:
    """What `_Vectors` returns, and of it, with what else is kept, what its backward pass reads."""
    B, C, _, N, _, Q = call.sizes
    mu, factors = mean.new_empty(B, C), mean.new_empty(B, C)
    enhanced, clf = mean.new_empty(B, N), mean.new_empty(B, N)
    gates = mean.new_empty(B, 2)
    signals = tuple(mean.new_empty(B) for _ in range(3 if call.three else 2))
    kept = mean.new_empty(2 * B * (N + C + Q) + 2 * N)
    results = (mu, enhanced, gates, *signals, *[None] * (3 - len(signals)), kept)
    sums = Sums(mean, variance, energy, pooled)
    if kernels := _triton(mean):
        kernels.forward(*call[:4], sums, f, normaliser, running, weights, results, factors, clf)
    else:
        arguments = call.arguments(sums, f, normaliser, running, weights, results)
        check(_native.C.interaction_gating_forward(*arguments, address(factors), address(clf)))
    return (factors, mu, clf, enhanced, gates, *signals), results


class _Vectors(torch.autograd.Function):
    @staticmethod
    def forward(ctx, call, normaliser, running, *inputs):
        found, results = _forward(call, normaliser, running, *inputs)
        ctx.call = call
        ctx.save_for_backward(normaliser, *inputs, *results)
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    def backward(ctx, *douts):
        call = ctx.call
        normaliser, mean, variance, energy, pooled, f, *others = ctx.saved_tensors
        weights, results = others[: len(WEIGHTS)], others[len(WEIGHTS) :]
        inputs = (mean, variance, energy, pooled, f, *weights)
        wanted = [
            torch.empty_like(t) if want else None for t, want in zip(inputs, ctx.needs_input_grad[3:], strict=True)
        ]
        outs = [None if d is None else d.contiguous() for d in douts]
        outs += [None] * (8 - len(outs))
        sums, gradients = Sums(*inputs[:4]), (outs, wanted[:5], wanted[5:])
        if kernels := _triton(mean):
            kernels.backward(*call[:4], sums, f, normaliser, weights, results, *gradients)
        else:
            arguments = call.arguments(sums, f, normaliser, (None, None), weights, results)
            addresses = (tuple(map(address, tensors)) for tensors in gradients)
            check(_native.C.interaction_gating_backward(*arguments, *addresses))
        given = (*douts, *inputs)
        return None, None, None, *first_order_only("task_interaction", wanted, given)


def vectors(
    backend: str,
    sums: Sums,
    f: Tensor,
    tim: TIMParameters,
    upa: UPAParameters,
    tau: float,
    normaliser: Tensor | None,
    norm: Normalisation,
) -> Vectors:
    """Everything between the passes; f in the type of computation.

    Raises:
        ValueError: training with a batch of one.
    """
    batch, dtype, three = f.shape[0], f.dtype, upa.seg_proj is not None
    learnt = (*tim[2:12], *upa)
    if (
        traced((*sums, f, *learnt, normaliser))  # asked first: of a batch of any size nothing may be asked
        or backend not in MOST_IMAGES
        or not 0 < batch <= MOST_IMAGES[backend]
        or (norm.training and batch == 1)  # PyTorch raises, in the words that users know
        or (normaliser is not None and normaliser.requires_grad)
        or norm.group is not None
    ):
        return vectors_torch(sums, f, tim, upa, tau, normaliser, norm)
    weights = [None if t is None else computed(t, dtype) for t in learnt]
    running = [computed(t, dtype) for t in (tim.norm_mean, tim.norm_var)]
    normaliser = None if normaliser is None else computed(normaliser, dtype)
    sizes = (batch, sums.mean.shape[1], sums.pooled.shape[1], f.shape[1], upa.fc1_bias.shape[0])
    queries = upa.seg_proj.shape[0] if three else 0
    numbers = (float(tau), float(norm.momentum), float(norm.eps))
    call = _Call((*sizes, queries), numbers, three, norm.training, dtype == torch.float64)
    used = (sums.mean, None if three else sums.variance, sums.energy, sums.pooled)
    given = (call, normaliser, running, *used, computed(f, dtype), *weights)
    found = _Vectors.apply(*given) if wants_grad(given[3:]) else _forward(*given)[0]
    if norm.training:
        for mine, theirs in zip(running, (tim.norm_mean, tim.norm_var), strict=True):
            if mine is not theirs:
                theirs.copy_(mine)
    return Vectors(*found[:5], (ThreeSignals if three else VarianceSignals)(*found[5:]))
