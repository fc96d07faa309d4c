"""The formulas of gating in PyTorch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit._distributed import Group, batch_norm_over, mean_over
from mtlkit.operators._operator import plain, traced
from mtlkit.operators.interaction.gating.signature import Gated, Normalisation
from mtlkit.operators.interaction.reduce import Reduced
from mtlkit.operators.interaction.types import AlignmentSignals, Signals, TIMParameters, UPAParameters, VarianceSignals


def _linear(x: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
    assert weight is not None  # the direction is there
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def _batch_norm(x: Tensor, p: Any, norm: Normalisation) -> Tensor:
    """Batch normalisation by TIMParameters in the dtype of x, whatever the dtype of the running statistics.

    PyTorch's backward pass reads wrong values from weights and running statistics that are not contiguous.
    """
    weight, bias, mean, var = learnt = p.norm_weight, p.norm_bias, p.norm_mean, p.norm_var
    if norm.group is not None:
        return batch_norm_over(norm.group, x, mean, var, weight, bias, norm.momentum, norm.eps)
    resolved = learnt if traced((x, *learnt)) else map(plain, learnt)
    weight, bias, mean_now, var_now = (t.to(x.dtype).contiguous() for t in resolved)
    y = F.batch_norm(x, mean_now, var_now, weight, bias, norm.training, norm.momentum, norm.eps)
    if norm.training:
        for statistic, new in ((mean, mean_now), (var, var_now)):
            if new is not statistic:
                statistic.copy_(new)
    return y


def tim_vectors(
    mean: Tensor, pooled: Tensor | None, f: Tensor, p: TIMParameters, tau: float, norm: Normalisation
) -> tuple[Tensor, Tensor]:
    """mu, (B, C), and the enhanced vector, (B, F), from the map's means and its pooled projection.

    If a direction is cut, mu is 1 or the enhanced vector is f.
    """
    enhanced = f = f.to(mean.dtype)  # (B, F)
    if pooled is not None:
        context = F.relu(_linear(pooled, p.context_weight, p.context_bias))  # (B, F)
        context = _batch_norm(context, p, norm)  # (B, F)
        enhanced = f + torch.sigmoid(_linear(context, p.clf_gate_weight, p.clf_gate_bias)) * context  # (B, F)
    if p.gain_weight is None:
        return torch.ones_like(mean), enhanced
    gain = torch.sigmoid(_linear(f, p.gain_weight, p.gain_bias))  # (B, C)
    gate = torch.sigmoid(_linear(mean, p.seg_gate_weight, p.seg_gate_bias))  # (B, C)
    return 1 + tau * gate * gain, enhanced


def variance_of(f: Tensor) -> Tensor:
    """The population variance, (B,)."""
    return (f - f.mean(1, keepdim=True)).square().mean(1)


def alignment_of(shift: Tensor, f_shift: Tensor, seg_proj: Tensor, clf_proj: Tensor) -> Tensor:
    """Cosine of the projected shifts of map, (B, C), and vector, (B, F); lengths are clamped to at least 1e-6."""
    seg, clf = _linear(shift, seg_proj), _linear(f_shift, clf_proj)  # (B, Q)
    seg, clf = (t * t.square().sum(1, keepdim=True).clamp(min=1e-12).rsqrt() for t in (seg, clf))
    return (seg * clf).sum(1)  # (B,)


def gates_of(
    signals: Signals,
    p: UPAParameters,
    normaliser: Tensor | None,
    group: Group | None = None,
    given: Tensor | None = None,
) -> Tensor:
    """The gates, (B, 2): the given ones, and UPA's where those are NaN."""
    u = torch.stack(tuple(signals), 1)  # (B, 2 or 3)
    if len(signals) == 2:
        if normaliser is None:
            normaliser = u.mean(0) if group is None else mean_over(group, u)[0]
        u = u / (normaliser.to(u.dtype) + 1e-8)
    logits = _linear(F.relu(_linear(u, p.fc1_weight, p.fc1_bias)), p.fc2_weight, p.fc2_bias)  # (B, 2)
    gates = torch.softmax(logits, 1) if len(signals) == 2 else torch.sigmoid(logits)
    return gates if given is None else torch.where(given.isnan(), gates, given.to(gates.dtype))


def mix(base: Tensor, enhanced: Tensor, weight: Tensor) -> Tensor:
    """Base + weight (enhanced - base), weight (B,), in the dtype of base."""
    weight = weight.reshape(-1, *[1] * (base.dim() - 1))
    return (base + weight * (enhanced - base)).to(base.dtype)


def gating_torch(
    sums: Reduced,
    f: Tensor,
    tim: TIMParameters,
    upa: UPAParameters,
    tau: float,
    normaliser: Tensor | None,
    norm: Normalisation,
    given: Tensor | None = None,
) -> Gated:
    """All formulas; f is in the dtype of the computation."""
    mu, enhanced = tim_vectors(sums.mean, sums.pooled, f, tim, tau, norm)
    spread = variance_of(enhanced)
    if upa.seg_proj is None or upa.clf_proj is None:  # both are given, or neither
        signals = VarianceSignals((mu.square() * sums.variance).mean(1), spread)
    else:
        alignment = alignment_of((mu - 1) * sums.mean, enhanced - f, upa.seg_proj, upa.clf_proj)
        signals = AlignmentSignals(alignment, sums.energy, torch.log1p(spread))  # pyright: ignore[reportArgumentType] - it was requested
    gates = gates_of(signals, upa, normaliser, norm.group, given)
    return Gated(1 + gates[:, :1] * (mu - 1), mu, mix(f, enhanced, gates[:, 1]), enhanced, gates, signals)
