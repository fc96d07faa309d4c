r"""Task interaction: TIM couples a segmentation map and a classification vector, UPA weighs how much each adopts.

B images, C channels of the map D, H x W pixels, L = H W; P channels of the projected map, F entries of the vector f.
sigma is the sigmoid, (.) the elementwise product, GAP the mean over the pixels.

TIM, Task Interaction Module:

    ctx = GAP(relu(W_p D + b_p))                        projection pooling; W_p is a 1 x 1 convolution, C -> P
    ctx = sum_l softmax_l(a D) relu(W_p D + b_p)        attention pooling; a bias of a would cancel
    c   = BN(relu(W_c ctx + b_c)),   g_c = sigma(W_g c + b_g),   f~ = f + g_c (.) c
    s   = sigma(W_s f + b_s),   g_s = sigma(W_d GAP(D) + b_d),   mu = 1 + tau g_s (.) s,   D~ = D (.) mu

UPA, Uncertainty Proxy Attention, on three signals or two:

    "variance"   u_seg = mean_c Var_hw(D~_c),   u_clf = Var_j(f~_j),   each divided by (its normaliser + 1e-8)
                 [w_seg, w_clf] = softmax(W_2 relu(W_1 [u_seg, u_clf] + b_1) + b_2)
    "alignment"      a = cos(P_s GAP(D~ - D), P_c (f~ - f)),   v = log(1 + Var_j(f~_j))
                 e = (sum |D(y+1,x) - D(y,x)| + sum |D(y,x+1) - D(y,x)|) / (C H W)
                 [w_seg, w_clf] = sigma(W_2 relu(W_1 [a, e, v] + b_1) + b_2)

    D^ = D + w_seg (D~ - D),   f^ = f + w_clf (f~ - f)

Variances are population variances. The fused kernels do not need the enhanced map D~ = D (.) mu: Var(D~_c) = mu_c^2
Var(D_c), GAP(D~ - D)_c = (mu_c - 1) GAP(D_c), and D^ = D (.) (1 + w_seg (mu - 1)). One pass over D computes means,
variances, gradient energy and the pooled projection; small layers process a few vectors; a second pass scales D.

Source: "Multi-Level Bidirectional Decoder Interaction for Uncertainty-Aware Breast Ultrasound Analysis" (2026),
equations 1 to 8, and its official code for projection pooling and two signals; "Bidirectional Decoder-Level Task
Interaction via Uncertainty-Aware Gating" (2026) for three signals. Its official code sets e to 0 below 8 rows, which
does not occur in its network; here the formula holds at every size.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from mtlkit._check import check_device, check_shape, check_tensor
from mtlkit._distributed import Group
from mtlkit.operators._backends import asked_for, choose
from mtlkit.operators._launch import compute_dtype, single_precision_only
from mtlkit.operators._self_check import CHECKED, fault
from mtlkit.operators.interaction import reduce
from mtlkit.operators.interaction.gating import Normalisation, alignment_of, gates_of, mix, tim_vectors, variance_of
from mtlkit.operators.interaction.level import enhance, gather, level, multiply, projection_of
from mtlkit.operators.interaction.types import (
    AlignmentSignals,
    InteractionOutput,
    Signals,
    TIMOutput,
    TIMParameters,
    UPAParameters,
    VarianceSignals,
    check_enhanced,
    check_gates,
    check_map,
    check_projection,
    check_signals,
    check_tau,
    check_tim,
    check_upa,
    check_vector,
    signals_named,
)

SERVED: tuple[str, ...] = reduce.OPERATOR.served
INFERENCE = Normalisation(training=False, momentum=0.01, eps=1e-3)


def limit(backend: str, x: Tensor, *others: "Tensor | None") -> "str | None":
    """Why a backend cannot run a call with these tensors, apart from the device; None if it can.

    Its annotations are strings because torch.compile in torch 2.6 does not evaluate `str | None`.
    """
    return single_precision_only((x, *others)) if backend in ("cuda", "triton") else None


def _choose(op: str, x: Tensor, *others: Tensor | None) -> str:
    def obstacle(name: str) -> "str | None":
        if reason := limit(name, x, *others):
            return reason
        return fault("task_interaction", name, x, asked_for(name)) if name in CHECKED else None

    return choose(op, SERVED, x.device, obstacle)


# --- the modules ------------------------------------------------------------------------------------------------------


def _enhance(backend: str, x: Tensor, f: Tensor, tim: TIMParameters, tau: float, norm: Normalisation) -> TIMOutput:
    sums = gather(backend, projection_of(x, tim), reduce.Options(False, compute_dtype(x, f)))
    mu, clf = tim_vectors(sums.mean, sums.pooled, f, tim, tau, norm)
    return TIMOutput(enhance(backend, x, mu, tim), clf.to(f.dtype), mu)


def _signals(
    backend: str,
    x: Tensor,
    x_enhanced: Tensor,
    f: Tensor,
    f_enhanced: Tensor,
    kind: str,
    seg_proj: Tensor | None,
    clf_proj: Tensor | None,
) -> Signals:
    dtype = compute_dtype(x, f)

    def sums_of(t: Tensor, energy: bool) -> reduce.Reduced:
        return gather(backend, reduce.Inputs(t, None, None, None), reduce.Options(energy, dtype))

    spread = variance_of(f_enhanced.to(dtype))
    if kind == "variance":
        return VarianceSignals(sums_of(x_enhanced, False).variance.mean(1), spread)
    base = sums_of(x, True)
    shift = sums_of(x_enhanced, False).mean - base.mean  # (B, C)
    step = f_enhanced.to(dtype) - f.to(dtype)  # (B, F)
    alignment = alignment_of(shift, step, seg_proj, clf_proj)  # pyright: ignore[reportArgumentType] - as kind says
    return AlignmentSignals(alignment, base.energy, torch.log1p(spread))  # pyright: ignore[reportArgumentType] - it was asked for


def _gate(
    backend: str,
    x: Tensor,
    x_enhanced: Tensor,
    f: Tensor,
    f_enhanced: Tensor,
    upa: UPAParameters,
    kind: str,
    normaliser: Tensor | None,
    group: Group | None = None,
    given: Tensor | None = None,
) -> InteractionOutput:
    signals = _signals(backend, x, x_enhanced, f, f_enhanced, kind, upa.seg_proj, upa.clf_proj)
    gates = gates_of(signals, upa, normaliser, group, given)
    seg, clf = mix(x, x_enhanced, gates[:, 0]), mix(f, f_enhanced, gates[:, 1])
    return InteractionOutput(seg, clf, gates, signals, f_enhanced, x_enhanced)


def _full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Disables autocast for the vectors, which are computed in the dtype of the computation."""
    kind = x.device.type
    enabled = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if enabled else nullcontext()


def interact(
    backend: str,
    x: Tensor,
    f: Tensor,
    tim: TIMParameters,
    upa: UPAParameters,
    signals: str,
    tau: float = 0.7,
    normaliser: Tensor | None = None,
    norm: Normalisation = INFERENCE,
    return_enhanced: bool = False,
    gates: Tensor | None = None,
) -> InteractionOutput:
    """`task_interaction` by a backend that can run the call; the arguments have been checked."""
    with _full_precision(x):
        if backend != "reference":
            options = reduce.Options(upa.seg_proj is not None, compute_dtype(x, f))
            found = level(backend, x, f, tim, upa, tau, normaliser, norm, options, gates)
            enhanced_seg = enhance(backend, x, found.mu, tim) if return_enhanced else None
            clf, enhanced_clf = found.clf, found.enhanced
            if f.dtype != options.dtype:
                clf, enhanced_clf = clf.to(f.dtype), enhanced_clf.to(f.dtype)
            return InteractionOutput(found.seg, clf, found.gates, found.signals, enhanced_clf, enhanced_seg)
        enhanced = _enhance(backend, x, f, tim, tau, norm)
        out = _gate(backend, x, enhanced.seg, f, enhanced.clf, upa, signals, normaliser, norm.group, gates)
        return out if return_enhanced else out._replace(enhanced_seg=None)


# --- public -----------------------------------------------------------------------------------------------------------


def tim_pool(x: Tensor, weight: Tensor, bias: Tensor, attn_weight: Tensor | None = None) -> Tensor:
    """The pooled projection of a map: the mean of relu(weight x + bias) over the pixels, or its mean under attention.

    With `attn_weight` the pixels are weighted by the softmax of attn_weight x over all pixels; a bias there would have
    no effect. The `cpu` backend never writes the projected map to memory.

    Args:
        x: map, (B, C, H, W), in any memory format.
        weight: projection, (P, C) or (P, C, 1, 1).
        bias: its bias, (P,).
        attn_weight: attention, (C,) or (1, C, 1, 1); None for the plain mean.

    Returns:
        The pooled projection, (B, P), in float32; float64 if x is.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together, the map has no pixel, or the requested backend cannot run
            this call.

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.ops.tim_pool(torch.randn(2, 8, 7, 5), torch.randn(4, 8), torch.zeros(4)).shape
        torch.Size([2, 4])
    """
    check_map("x", x)
    check_projection(x, weight, bias, attn_weight)
    backend = _choose("tim_pool", x, weight, bias, attn_weight)
    with _full_precision(x):
        attn = None if attn_weight is None else attn_weight.flatten()
        inputs = reduce.Inputs(x, weight.flatten(1), bias, attn)
        sums = gather(backend, inputs, reduce.Options(False, compute_dtype(x)))
        return sums.pooled  # pyright: ignore[reportReturnType] - there is a projection


def tim_modulate(x: Tensor, gate: Tensor, gain: Tensor, tau: float = 0.7) -> Tensor:
    """The enhanced map x (1 + tau gate gain), amplified by at most 1 + tau if gate and gain are between 0 and 1.

    Args:
        x: map, (B, C, H, W).
        gate: g_s, (B, C).
        gain: s, (B, C).
        tau: the largest amplification minus 1.

    Returns:
        The enhanced map, in the shape, dtype and memory format of x.

    Raises:
        TypeError: an argument is not a floating-point tensor, or tau is not a number.
        ValueError: shapes or devices do not fit together, or the requested backend cannot run this call.

    Example:
        >>> import torch, mtlkit
        >>> x = torch.randn(2, 8, 7, 5)
        >>> torch.equal(mtlkit.ops.tim_modulate(x, torch.rand(2, 8), torch.rand(2, 8), tau=0), x)
        True
    """
    check_map("x", x)
    for name, value in (("gate", gate), ("gain", gain)):
        check_tensor(name, value, 2)
        check_shape(name, value, "(B, C)", *x.shape[:2])
    check_device(x=x, gate=gate, gain=gain)
    check_tau(tau)
    dtype = compute_dtype(x, gate, gain)
    backend = _choose("tim_modulate", x, gate, gain)
    return multiply(backend, x, 1 + tau * gate.to(dtype) * gain.to(dtype))


def upa_stats(
    x: Tensor,
    x_enhanced: Tensor,
    f: Tensor,
    f_enhanced: Tensor,
    signals: str = "variance",
    seg_proj: Tensor | None = None,
    clf_proj: Tensor | None = None,
) -> Signals:
    """UPA's signals from a base and an enhanced map and vector.

    Args:
        x: base map D, (B, C, H, W).
        x_enhanced: enhanced map, in the shape of x.
        f: base vector, (B, F).
        f_enhanced: enhanced vector, in the shape of f.
        signals: "variance" for the variances of enhanced map and vector, "alignment" for alignment of the tasks,
            gradient energy of the base map, and spread of the enhanced vector.
        seg_proj: P_s, (Q, C); only for "alignment".
        clf_proj: P_c, (Q, F); only for "alignment".

    Returns:
        VarianceSignals or AlignmentSignals, (B,) each, in float32; float64 if x or f is.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: unknown signals, shapes or devices that do not fit together, or a requested backend that cannot run
            this call.

    Example:
        >>> import torch, mtlkit
        >>> x, f = torch.randn(2, 8, 7, 5), torch.randn(2, 16)
        >>> mtlkit.ops.upa_stats(x, 1.5 * x, f, 2 * f).clf.shape
        torch.Size([2])
    """
    signals = signals_named(signals)
    check_map("x", x)
    check_vector(f, x)
    check_enhanced(x, x_enhanced, f, f_enhanced)
    check_signals(x, f, signals, seg_proj, clf_proj)
    backend = _choose("upa_stats", x, x_enhanced, f)
    with _full_precision(x):
        return _signals(backend, x, x_enhanced, f, f_enhanced, signals, seg_proj, clf_proj)


def upa_gate(base: Tensor, enhanced: Tensor, weight: Tensor) -> Tensor:
    """Base + weight (enhanced - base), for maps or vectors: 0 keeps the base, 1 takes the enhanced one.

    Plain PyTorch on every backend.

    Args:
        base: (B, ...).
        enhanced: in the shape of base.
        weight: (B,).

    Returns:
        The mixture, in the shape and dtype of base.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together.

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.ops.upa_gate(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([0.0, 0.5]))
        tensor([[0.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.5000]])
    """
    check_tensor("base", base, tuple(range(1, 9)))
    check_tensor("enhanced", enhanced, base.dim())
    check_shape("enhanced", enhanced, "(B, ...), that of base,", *base.shape)
    check_tensor("weight", weight, 1)
    check_shape("weight", weight, "(B,)", base.shape[0])
    check_device(base=base, enhanced=enhanced, weight=weight)
    return mix(base, enhanced, weight)


def tim(
    x: Tensor,
    f: Tensor,
    tim: TIMParameters,
    *,
    tau: float = 0.7,
    training: bool = False,
    momentum: float = 0.01,
    eps: float = 1e-3,
    group: Group | None = None,
) -> TIMOutput:
    """The complete Task Interaction Module: pooling, gates, modulation. Arguments: see `task_interaction`.

    Returns:
        TIMOutput: the enhanced map and vector, in the shapes and dtypes of x and f, and the factors mu.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together, or the requested backend cannot run this call.

    Example:
        >>> import mtlkit
        >>> from mtlkit.testing import InteractionShape
        >>> level = InteractionShape(B=2, C=8, H=7, W=5, F=16).inputs()
        >>> mtlkit.ops.tim(level.x, level.f, level.tim).mu.shape
        torch.Size([2, 8])
    """
    check_map("x", x)
    check_vector(f, x)
    check_tim(x, f, tim, tau)
    backend = _choose("tim", *projection_of(x, tim), f)
    with _full_precision(x):
        return _enhance(backend, x, f, tim, tau, Normalisation(training, momentum, eps, group if training else None))


def upa(
    x: Tensor,
    x_enhanced: Tensor,
    f: Tensor,
    f_enhanced: Tensor,
    upa: UPAParameters,
    *,
    signals: str = "variance",
    normaliser: Tensor | None = None,
) -> InteractionOutput:
    """The complete Uncertainty Proxy Attention for any enhanced map and vector. Arguments: see `task_interaction`.

    Returns:
        InteractionOutput: final map and vector, gates, signals, and the given enhanced map and vector.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together, or the requested backend cannot run this call.

    Example:
        >>> import torch, mtlkit
        >>> from mtlkit.testing import InteractionShape
        >>> level = InteractionShape(B=2, C=8, H=7, W=5, F=16).inputs()
        >>> out = mtlkit.ops.upa(level.x, 1.5 * level.x, level.f, 2 * level.f, level.upa)
        >>> torch.allclose(out.gates.sum(1), torch.ones(2))
        True
    """
    check_map("x", x)
    check_vector(f, x)
    check_enhanced(x, x_enhanced, f, f_enhanced)
    signals = signals_named(signals)
    check_upa(x, f, upa, signals, normaliser)
    backend = _choose("upa", x, x_enhanced, f)
    with _full_precision(x):
        return _gate(backend, x, x_enhanced, f, f_enhanced, upa, signals, normaliser)


def task_interaction(
    x: Tensor,
    f: Tensor,
    tim: TIMParameters,
    upa: UPAParameters,
    *,
    signals: str = "variance",
    tau: float = 0.7,
    normaliser: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.01,
    eps: float = 1e-3,
    return_enhanced: bool = False,
    group: Group | None = None,
    gates: Tensor | None = None,
) -> InteractionOutput:
    """A level of bidirectional task interaction: TIM, then UPA, in one pass that reads the map and one that writes it.

    Maps and vectors may be float32, float64, bfloat16 or float16, in any memory format; NCHW and channels-last are read
    without a copy. Sums and vectors are float32 (float64 if x or f is). First-order gradients flow to every tensor
    except the running statistics. Results are bitwise reproducible on the same machine with the same number of threads.
    The projected map is never written to memory, the enhanced map only if requested.

    With `signals="variance"` and no normaliser, the variances are divided by their mean over the batch, so that the
    result of an image depends on the others; in a batch of one, both signals are 1 and the gates are constant.

    Args:
        x: map of the segmentation branch D, (B, C, H, W).
        f: vector of the classification branch, (B, F).
        tim: parameters of TIM.
        upa: parameters of UPA.
        signals: UPA's signals, "variance" (two, softmax gates) or "alignment" (three: alignment, gradient energy,
            spread; sigmoid gates).
        tau: TIM's largest amplification of the map minus 1.
        normaliser: divisors of the two variances, (2,), for example running means; their means over the batch if None.
        training: whether TIM's batch normalisation uses the batch's statistics and updates the running ones.
        momentum: weight of the batch in the running statistics.
        eps: added to the variance in the batch normalisation.
        return_enhanced: whether to return the enhanced map too, which takes another pass.
        group: torch.distributed process group whose batches count as one in training, as in torch.nn.SyncBatchNorm: for
            TIM's batch normalisation and for the means of the variances. PyTorch then computes the vectors.
        gates: weights (B, 2) that replace UPA's; NaN keeps UPA's. 0 leaves the map or the vector unchanged, 1 takes the
            enhanced one. PyTorch then computes the vectors, as it does if `tim` cuts a direction.

    Returns:
        InteractionOutput: final map and vector in the shapes, dtypes and memory format of x and f; gates, signals, the
        enhanced vector, and the enhanced map if requested.

    Raises:
        TypeError: an argument is not a floating-point tensor.
        ValueError: shapes or devices do not fit together, the map has no pixel, training with a batch of one, or the
            requested backend cannot run this call.

    Example:
        >>> import mtlkit
        >>> from mtlkit.testing import InteractionShape
        >>> level = InteractionShape(B=2, C=8, H=7, W=5, F=16).inputs()
        >>> out = mtlkit.ops.task_interaction(level.x, level.f, level.tim, level.upa)
        >>> out.seg.shape, out.clf.shape, out.gates.shape
        (torch.Size([2, 8, 7, 5]), torch.Size([2, 16]), torch.Size([2, 2]))
    """
    check_map("x", x)
    check_vector(f, x)
    check_tim(x, f, tim, tau)
    signals = signals_named(signals)
    check_upa(x, f, upa, signals, normaliser)
    check_gates(x, gates)
    backend = _choose("task_interaction", x, tim.proj_weight, tim.proj_bias, tim.attn_weight, f)
    norm = Normalisation(training, momentum, eps, group if training else None)
    return interact(backend, x, f, tim, upa, signals, tau, normaliser, norm, return_enhanced, gates)
