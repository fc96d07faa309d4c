r"""Task interaction between its passes, in Triton, forward and backward: formulas as in mtlkit/operators/interaction.

A level has five small layers with about two dozen rows; in PyTorch they take about thirty launches forward and sixty
backward, each of which takes longer to start than to run. Here each launch does all work that does not depend on
results of other programs. Forward, the launches are: the layers that read the sums; the gate of the vector; with three
signals, the projected shifts; the signals; the gates. Backward has the same in reverse. A program holds all images of
its rows or columns, so that the batch normalisation, which couples the images, stays within one program; sums have a
fixed order.

B images, C channels, P projected channels, F entries of the vector, H hidden units, Q projected entries, S signals. All
tensors are float32, contiguous; matrices are (images, entries), weights (rows, columns). Rows of images are padded to
BB, a power of two.
"""

import triton
import triton.language as tl

from mtlkit.kernels._launch import on_device
from mtlkit.kernels.interaction._gating import (
    DEPTH,
    SIDE,
    WARPS,
    divisor_of,
    hidden_unit,
    inverse_length,
    kept_parts,
    linear,
    load_columns,
    padded_images,
    sigmoid,
    store_columns,
)
from mtlkit.kernels.interaction._gating_bwd import backward
from mtlkit.kernels.tables import power_of_two

__all__ = ["backward", "forward"]

# --- forward ----------------------------------------------------------------------------------------------------------


@triton.jit
def context_rows(
    pooled, weight, bias, norm_weight, norm_bias, norm_mean, norm_var, context, normalised, centre, slope, r,
    B, P, F, momentum, eps,
    TRAINING: tl.constexpr, BB: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Computes rows r of the context, before and after batch normalisation, and the statistics of these rows."""
    b, inside = tl.arange(0, BB), r < F
    a = linear(pooled, weight, bias, b, r, B, F, P, BB, BR, BK)
    a = tl.where(a < 0, 0.0, a)
    mean = tl.load(norm_mean + r, mask=inside, other=0.0)
    variance = tl.load(norm_var + r, mask=inside, other=1.0)
    if TRAINING:
        there = (b < B)[:, None]
        own = tl.sum(tl.where(there, a, 0.0), 0) / B
        d = tl.where(there, a - own[None, :], 0.0)
        square = tl.sum(d * d, 0)
        tl.store(norm_mean + r, mean + momentum * (own - mean), mask=inside)
        tl.store(norm_var + r, variance + momentum * (square / (B - 1) - variance), mask=inside)
        mean, variance = own, square / B
    inverse = 1 / tl.sqrt(variance + eps)
    scale = tl.load(norm_weight + r, mask=inside, other=0.0)
    shift = tl.load(norm_bias + r, mask=inside, other=0.0)
    tl.store(centre + r, mean, mask=inside)
    tl.store(slope + r, inverse, mask=inside)
    store_columns(context, a, b, r, B, F)
    store_columns(normalised, (a - mean[None, :]) * inverse[None, :] * scale[None, :] + shift[None, :], b, r, B, F)


@triton.jit
def interaction_rows_fwd_kernel(
    mean, pooled, f, context_weight, context_bias, gain_weight, gain_bias, seg_gate_weight, seg_gate_bias,
    norm_weight, norm_bias, norm_mean, norm_var, context, normalised, centre, slope, gain, seg_gate, mu,
    B, C, P, F, tau, momentum, eps,
    TRAINING: tl.constexpr, BB: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Rows of the context and their batch normalisation, and rows of the two gates whose product gives mu."""
    features, pid = tl.cdiv(F, BR), tl.program_id(0)
    if pid < features:
        context_rows(
            pooled, context_weight, context_bias, norm_weight, norm_bias, norm_mean, norm_var,
            context, normalised, centre, slope, pid * BR + tl.arange(0, BR), B, P, F, momentum, eps,
            TRAINING, BB, BR, BK,
        )  # fmt: skip
    else:
        b, r = tl.arange(0, BB), (pid - features) * BR + tl.arange(0, BR)
        s = sigmoid(linear(f, gain_weight, gain_bias, b, r, B, C, F, BB, BR, BK))
        g = sigmoid(linear(mean, seg_gate_weight, seg_gate_bias, b, r, B, C, C, BB, BR, BK))
        store_columns(gain, s, b, r, B, C)
        store_columns(seg_gate, g, b, r, B, C)
        store_columns(mu, 1 + tau * g * s, b, r, B, C)


@triton.jit
def interaction_gate_fwd_kernel(
    f, normalised, weight, bias, clf_gate, enhanced, B, F,
    BB: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Rows of the vector's gate and of the enhanced vector."""
    b, r = tl.arange(0, BB), tl.program_id(0) * BR + tl.arange(0, BR)
    q = sigmoid(linear(normalised, weight, bias, b, r, B, F, F, BB, BR, BK))
    store_columns(clf_gate, q, b, r, B, F)
    e = load_columns(f, b, r, B, F) + q * load_columns(normalised, b, r, B, F)
    store_columns(enhanced, e, b, r, B, F)


@triton.jit
def interaction_queries_fwd_kernel(
    mean, f, mu, enhanced, seg_proj, clf_proj, seg_query, clf_query, B, C, F, Q,
    BB: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Rows of the projected shifts of map and vector."""
    b, r = tl.arange(0, BB), tl.program_id(0) * BR + tl.arange(0, BR)
    seg, clf = tl.zeros([BB, BR], tl.float32), tl.zeros([BB, BR], tl.float32)
    for start in range(0, C, BK):
        k = start + tl.arange(0, BK)
        shift = (load_columns(mu, b, k, B, C) - 1) * load_columns(mean, b, k, B, C)
        shift = tl.where((b < B)[:, None] & (k < C)[None, :], shift, 0.0)
        seg = tl.dot(shift, tl.trans(load_columns(seg_proj, r, k, Q, C)), seg, input_precision="ieee")
    for start in range(0, F, BK):
        k = start + tl.arange(0, BK)
        shift = load_columns(enhanced, b, k, B, F) - load_columns(f, b, k, B, F)
        clf = tl.dot(shift, tl.trans(load_columns(clf_proj, r, k, Q, F)), clf, input_precision="ieee")
    store_columns(seg_query, seg, b, r, B, Q)
    store_columns(clf_query, clf, b, r, B, Q)


@triton.jit
def interaction_signals_fwd_kernel(
    variance, energy, mu, enhanced, seg_query, clf_query, first, second, third, C, F, Q,
    S: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """The signals of an image."""
    b = tl.program_id(0)
    j, c = tl.arange(0, BF), tl.arange(0, BC)
    e = tl.load(enhanced + b * F + j, mask=j < F, other=0.0)
    d = tl.where(j < F, e - tl.sum(e, 0) / F, 0.0)
    spread = tl.sum(d * d, 0) / F
    if S == 3:
        k = tl.arange(0, BQ)
        seg = tl.load(seg_query + b * Q + k, mask=k < Q, other=0.0)
        clf = tl.load(clf_query + b * Q + k, mask=k < Q, other=0.0)
        tl.store(first + b, tl.sum(seg * clf, 0) * inverse_length(seg) * inverse_length(clf))
        tl.store(second + b, tl.load(energy + b))
        # log(1 + spread), accurate for small spread: log(w) (spread / (w - 1)) corrects the rounding of w = 1 + spread
        w = 1 + spread
        tl.store(third + b, tl.where(w == 1, spread, tl.log(w) * (spread / (w - 1))))
    else:
        m = tl.load(mu + b * C + c, mask=c < C, other=0.0)
        tl.store(first + b, tl.sum(m * m * tl.load(variance + b * C + c, mask=c < C, other=0.0), 0) / C)
        tl.store(second + b, spread)


@triton.jit
def interaction_factors_fwd_kernel(
    f, mu, enhanced, first, second, third, normaliser, fc1_weight, fc1_bias, fc2_weight, fc2_bias,
    gates, factors, clf, B, C, F, H,
    S: tl.constexpr, BB: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Gates, factors and final vector of an image."""
    i = tl.program_id(0)
    b, h = tl.arange(0, BB), tl.arange(0, BH)
    u, v, w = tl.load(first + i), tl.load(second + i), 0.0
    if S == 3:
        w = tl.load(third + i)
    else:
        u /= divisor_of(first, normaliser, 0, b, B)
        v /= divisor_of(second, normaliser, 1, b, B)
    unit = hidden_unit(u, v, w, fc1_weight, fc1_bias, h, H, S)
    there = h < H
    seg = tl.load(fc2_bias) + tl.sum(tl.load(fc2_weight + h, mask=there, other=0.0) * unit, 0)
    own = tl.load(fc2_bias + 1) + tl.sum(tl.load(fc2_weight + H + h, mask=there, other=0.0) * unit, 0)
    if S == 3:
        w_seg, w_clf = sigmoid(seg), sigmoid(own)
    else:
        w_seg, w_clf = sigmoid(seg - own), sigmoid(own - seg)  # softmax over two logits
    tl.store(gates + 2 * i, w_seg)
    tl.store(gates + 2 * i + 1, w_clf)
    c, j = i * C + tl.arange(0, BC), i * F + tl.arange(0, BF)
    channels, entries = tl.arange(0, BC) < C, tl.arange(0, BF) < F
    tl.store(factors + c, 1 + w_seg * (tl.load(mu + c, mask=channels) - 1), mask=channels)
    base = tl.load(f + j, mask=entries)
    tl.store(clf + j, base + w_clf * (tl.load(enhanced + j, mask=entries) - base), mask=entries)


# --- launch -----------------------------------------------------------------------------------------------------------


def forward(sizes, numbers, alignment, training, sums, f, normaliser, running, weights, results, factors, clf) -> None:
    """Writes results, factors and clf, and in training the running statistics; names and orders as in the C++ kernel.

    Args:
        sizes: B (at most 64: a program holds a tile of all images), C, P, F, H
            and Q.
        numbers: tau, momentum and eps.
        alignment: whether there are three signals.
        training: whether to normalise by the statistics of the batch.
        sums: mean (B, C), variance (B, C), energy (B,), pooled (B, P).
        f: (B, F).
        normaliser: (2,) or None.
        running: mean and variance, (F,) each.
        weights: weights of the five layers, the normalisation, UPA's layers and projections.
        results: mu, enhanced, gates, three signals, and the buffer for `backward`.
        factors: (B, C).
        clf: (B, F).
    """
    B, C, P, F, H, Q = sizes
    tau, momentum, eps = numbers
    mean, variance, energy, pooled = sums
    mu, enhanced, gates, *signals, kept = results
    context, clf_gate, gain, seg_gate, seg_query, clf_query, centre, slope = kept_parts(kept, B, C, F, Q)
    *layers, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, seg_proj, clf_proj = weights
    context_weight, context_bias, gate_weight, gate_bias, *others = layers
    normalised, S, BB = f.new_empty(B, F), 3 if alignment else 2, padded_images(B)
    shared = {"BB": BB, "BR": SIDE, "BK": DEPTH, "num_warps": WARPS}
    rows = {"BC": power_of_two(C), "BF": power_of_two(F), "num_warps": WARPS}
    blocks, channels = triton.cdiv(F, SIDE), triton.cdiv(C, SIDE)
    with on_device(f):
        interaction_rows_fwd_kernel[(blocks + channels,)](
            mean, pooled, f, context_weight, context_bias, *others, norm_weight, norm_bias, *running,
            context, normalised, centre, slope, gain, seg_gate, mu, B, C, P, F, tau, momentum, eps,
            TRAINING=training, **shared,
        )  # fmt: skip
        interaction_gate_fwd_kernel[(blocks,)](
            f, normalised, gate_weight, gate_bias, clf_gate, enhanced, B, F, **shared
        )  # fmt: skip
        if alignment:
            interaction_queries_fwd_kernel[(triton.cdiv(Q, SIDE),)](
                mean, f, mu, enhanced, seg_proj, clf_proj, seg_query, clf_query, B, C, F, Q, **shared
            )
        interaction_signals_fwd_kernel[(B,)](
            variance, energy, mu, enhanced, seg_query, clf_query, *signals, C, F, Q,
            S=S, BQ=power_of_two(max(Q, 1)), **rows,
        )  # fmt: skip
        interaction_factors_fwd_kernel[(B,)](
            f, mu, enhanced, *signals, normaliser, fc1_weight, fc1_bias, fc2_weight, fc2_bias,
            gates, factors, clf, B, C, F, H, S=S, BB=BB, BH=power_of_two(H), **rows,
        )  # fmt: skip
