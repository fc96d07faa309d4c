"""The backward half of gating.py: its kernels and their launcher."""

import triton
import triton.language as tl

from mtlkit.kernels._launch import on_device
from mtlkit.kernels.interaction._gating import (
    DEPTH,
    SHORTEST,
    SIDE,
    WARPS,
    divisor_of,
    hidden_unit,
    inverse_length,
    kept_parts,
    load_columns,
    padded_images,
    pull_rows,
    store_columns,
)
from mtlkit.kernels.tables import power_of_two

# --- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit
def interaction_gates_bwd_kernel(
    f, mu, enhanced, first, second, third, normaliser, gates, fc1_weight, fc1_bias, fc2_weight,
    dfactors, dclf, dgates, dlogits, dsignals, B, C, F, H,
    S: tl.constexpr, BB: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Gradients of an image's two logits, (B, 2), and of its normalised signals, (S, B)."""
    i = tl.program_id(0)
    b, h = tl.arange(0, BB), tl.arange(0, BH)
    d_seg, d_clf = 0.0, 0.0
    if dgates is not None:
        d_seg, d_clf = tl.load(dgates + 2 * i), tl.load(dgates + 2 * i + 1)
    if dfactors is not None:
        c = tl.arange(0, BC)
        m = tl.load(mu + i * C + c, mask=c < C, other=1.0)
        d_seg += tl.sum(tl.load(dfactors + i * C + c, mask=c < C, other=0.0) * (m - 1), 0)
    if dclf is not None:
        j = tl.arange(0, BF)
        at, there = i * F + j, j < F
        shift = tl.load(enhanced + at, mask=there, other=0.0) - tl.load(f + at, mask=there, other=0.0)
        d_clf += tl.sum(tl.load(dclf + at, mask=there, other=0.0) * shift, 0)
    w_seg, w_clf = tl.load(gates + 2 * i), tl.load(gates + 2 * i + 1)
    u, v, w = tl.load(first + i), tl.load(second + i), 0.0
    if S == 3:
        w = tl.load(third + i)
        d_seg, d_clf = w_seg * (1 - w_seg) * d_seg, w_clf * (1 - w_clf) * d_clf
    else:
        u /= divisor_of(first, normaliser, 0, b, B)
        v /= divisor_of(second, normaliser, 1, b, B)
        both = w_seg * d_seg + w_clf * d_clf
        d_seg, d_clf = w_seg * (d_seg - both), w_clf * (d_clf - both)
    tl.store(dlogits + 2 * i, d_seg)
    tl.store(dlogits + 2 * i + 1, d_clf)
    there = h < H
    d = tl.load(fc2_weight + h, mask=there, other=0.0) * d_seg
    d += tl.load(fc2_weight + H + h, mask=there, other=0.0) * d_clf
    d = tl.where(hidden_unit(u, v, w, fc1_weight, fc1_bias, h, H, S) <= 0, 0.0, d)
    for s in tl.static_range(S):
        tl.store(dsignals + s * B + i, tl.sum(tl.load(fc1_weight + h * S + s, mask=there, other=0.0) * d, 0))


@triton.jit
def interaction_upa_bwd_kernel(
    first, second, third, normaliser, fc1_weight, fc1_bias, fc2_weight, dlogits,
    dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, B, H,
    S: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Gradients of UPA's two layers."""
    b, h = tl.arange(0, BB), tl.arange(0, BH)
    images, units = b < B, h < H
    u = tl.load(first + b, mask=images, other=0.0)
    v = tl.load(second + b, mask=images, other=0.0)
    w = tl.zeros([BB], tl.float32)
    if S == 3:
        w = tl.load(third + b, mask=images, other=0.0)
    else:
        u /= divisor_of(first, normaliser, 0, b, B)
        v /= divisor_of(second, normaliser, 1, b, B)
    unit = hidden_unit(u[:, None], v[:, None], w[:, None], fc1_weight, fc1_bias, h[None, :], H, S)  # [BB, BH]
    d_seg = tl.load(dlogits + 2 * b, mask=images, other=0.0)
    d_clf = tl.load(dlogits + 2 * b + 1, mask=images, other=0.0)
    if dfc2_bias is not None:
        tl.store(dfc2_bias, tl.sum(d_seg, 0))
        tl.store(dfc2_bias + 1, tl.sum(d_clf, 0))
    if dfc2_weight is not None:
        tl.store(dfc2_weight + h, tl.sum(tl.where(images[:, None], d_seg[:, None] * unit, 0.0), 0), mask=units)
        tl.store(dfc2_weight + H + h, tl.sum(tl.where(images[:, None], d_clf[:, None] * unit, 0.0), 0), mask=units)
    d = tl.load(fc2_weight + h, mask=units, other=0.0)[None, :] * d_seg[:, None]
    d += tl.load(fc2_weight + H + h, mask=units, other=0.0)[None, :] * d_clf[:, None]
    d = tl.where((unit <= 0) | (b >= B)[:, None], 0.0, d)
    if dfc1_bias is not None:
        tl.store(dfc1_bias + h, tl.sum(d, 0), mask=units)
    if dfc1_weight is not None:
        tl.store(dfc1_weight + h * S, tl.sum(d * u[:, None], 0), mask=units)
        tl.store(dfc1_weight + h * S + 1, tl.sum(d * v[:, None], 0), mask=units)
        if S == 3:
            tl.store(dfc1_weight + h * S + 2, tl.sum(d * w[:, None], 0), mask=units)


@triton.jit
def pull_signal(dsignals, signal, dsignal, normaliser, index, i, b, B, S: tl.constexpr):
    """The gradient of an image's signal: through the normalised signals, plus its own."""
    d = tl.load(dsignals + index * B + i)
    if S == 2:
        divisor = divisor_of(signal, normaliser, index, b, B)
        if normaliser is None:
            every = tl.load(dsignals + index * B + b, mask=b < B, other=0.0)
            coupled = tl.sum(every * tl.load(signal + b, mask=b < B, other=0.0), 0) / (divisor * divisor * B)
            d = d / divisor - coupled
        else:
            d /= divisor
    if dsignal is not None:
        d += tl.load(dsignal + i)
    return d


@triton.jit
def pull_cosine(a, b, d):
    """The gradient of a, from that of the cosine (a . b) / (|a| |b|)."""
    square, inverse, other = tl.sum(a * a, 0), inverse_length(a), inverse_length(b)
    along = tl.where(square < SHORTEST, 0.0, tl.sum(a * b, 0) * inverse * inverse)
    return d * inverse * other * (b - along * a)


@triton.jit
def interaction_signals_bwd_kernel(
    variance, mu, enhanced, seg_query, clf_query, gates, first, second, third, normaliser, dsignals,
    dfactors, dmu_given, dclf, denhanced_given, dfirst, dsecond, dthird,
    dmu, denhanced, df, dvariance, denergy, dseg_query, dclf_query, B, C, F, Q,
    S: tl.constexpr, BB: tl.constexpr, BC: tl.constexpr, BF: tl.constexpr, BQ: tl.constexpr,
):  # fmt: skip
    """Gradients of an image's mu, enhanced vector, base vector and queries, from the signals and outputs only."""
    i, b = tl.program_id(0), tl.arange(0, BB)
    w_seg, w_clf = tl.load(gates + 2 * i), tl.load(gates + 2 * i + 1)
    d_seg = pull_signal(dsignals, first, dfirst, normaliser, 0, i, b, B, S)
    d_spread = pull_signal(dsignals, second, dsecond, normaliser, 1, i, b, B, S)
    if S == 3:
        if denergy is not None:
            tl.store(denergy + i, d_spread)
        d_spread = pull_signal(dsignals, third, dthird, normaliser, 2, i, b, B, S) * tl.exp(-tl.load(third + i))
        k = tl.arange(0, BQ)
        seg = tl.load(seg_query + i * Q + k, mask=k < Q, other=0.0)
        clf = tl.load(clf_query + i * Q + k, mask=k < Q, other=0.0)
        tl.store(dseg_query + i * Q + k, pull_cosine(seg, clf, d_seg), mask=k < Q)
        tl.store(dclf_query + i * Q + k, pull_cosine(clf, seg, d_seg), mask=k < Q)
    j = tl.arange(0, BF)
    at, there = i * F + j, j < F
    e = tl.load(enhanced + at, mask=there, other=0.0)
    de = d_spread * 2 * (e - tl.sum(e, 0) / F) / F
    base = tl.zeros([BF], tl.float32)
    if denhanced_given is not None:
        de += tl.load(denhanced_given + at, mask=there, other=0.0)
    if dclf is not None:
        d = tl.load(dclf + at, mask=there, other=0.0)
        de += d * w_clf
        base = d * (1 - w_clf)
    tl.store(denhanced + at, de, mask=there)
    tl.store(df + at, base, mask=there)
    c = tl.arange(0, BC)
    at, there = i * C + c, c < C
    dm = tl.zeros([BC], tl.float32)
    if S == 2:
        m = tl.load(mu + at, mask=there, other=0.0)
        dm = d_seg * 2 * m * tl.load(variance + at, mask=there, other=0.0) / C
        if dvariance is not None:
            tl.store(dvariance + at, d_seg * m * m / C, mask=there)
    if dmu_given is not None:
        dm += tl.load(dmu_given + at, mask=there, other=0.0)
    if dfactors is not None:
        dm += tl.load(dfactors + at, mask=there, other=0.0) * w_seg
    tl.store(dmu + at, dm, mask=there)


@triton.jit
def interaction_queries_bwd_kernel(
    mean, f, mu, enhanced, seg_proj, clf_proj, dseg_query, dclf_query,
    dmu, dmean, denhanced, df, dseg_proj, dclf_proj, B, C, F, Q,
    BB: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """With three signals: the gradients through columns of the two projections, and those of the projections."""
    b = tl.arange(0, BB)
    d = tl.zeros([BB, BN], tl.float32)
    channels, pid = tl.cdiv(C, BN), tl.program_id(0)
    if pid < channels:
        n = pid * BN + tl.arange(0, BN)
        excess, m = load_columns(mu, b, n, B, C) - 1, load_columns(mean, b, n, B, C)
        for start in range(0, Q, BR):
            r = start + tl.arange(0, BR)
            dy = load_columns(dseg_query, b, r, B, Q)
            d = pull_rows(d, dy, excess * m, seg_proj, dseg_proj, None, r, n, False, Q, C)
        store_columns(dmu, load_columns(dmu, b, n, B, C) + d * m, b, n, B, C)
        if dmean is not None:
            store_columns(dmean, d * excess, b, n, B, C)
    else:
        n = (pid - channels) * BN + tl.arange(0, BN)
        shift = load_columns(enhanced, b, n, B, F) - load_columns(f, b, n, B, F)
        for start in range(0, Q, BR):
            r = start + tl.arange(0, BR)
            dy = load_columns(dclf_query, b, r, B, Q)
            d = pull_rows(d, dy, shift, clf_proj, dclf_proj, None, r, n, False, Q, F)
        store_columns(denhanced, load_columns(denhanced, b, n, B, F) + d, b, n, B, F)
        store_columns(df, load_columns(df, b, n, B, F) - d, b, n, B, F)


@triton.jit
def normalised_columns(context, centre, slope, norm_weight, norm_bias, b, n, B, F):
    """The normalised context and its part before scale and shift, [BB, BN] each, 0 for padding images."""
    inside = n < F
    m, s = tl.load(centre + n, mask=inside, other=0.0), tl.load(slope + n, mask=inside, other=0.0)
    scale = tl.load(norm_weight + n, mask=inside, other=0.0)
    shift = tl.load(norm_bias + n, mask=inside, other=0.0)
    unit = tl.where((b < B)[:, None], (load_columns(context, b, n, B, F) - m[None, :]) * s[None, :], 0.0)
    return tl.where((b < B)[:, None], unit * scale[None, :] + shift[None, :], 0.0), unit


@triton.jit
def interaction_gate_bwd_kernel(
    context, clf_gate, centre, slope, weight, norm_weight, norm_bias, denhanced,
    df, dcontext, dweight, dbias, dnorm_weight, dnorm_bias, B, F,
    TRAINING: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Columns of the vector's gate, then the gradient through the normalisation to the context before its ReLU."""
    b, n = tl.arange(0, BB), tl.program_id(0) * BN + tl.arange(0, BN)
    inside = n < F
    c, unit = normalised_columns(context, centre, slope, norm_weight, norm_bias, b, n, B, F)
    d = tl.zeros([BB, BN], tl.float32)
    for start in range(0, F, BR):
        r = start + tl.arange(0, BR)
        q = load_columns(clf_gate, b, r, B, F)
        c_rows, _ = normalised_columns(context, centre, slope, norm_weight, norm_bias, b, r, B, F)
        dy = load_columns(denhanced, b, r, B, F) * c_rows * q * (1 - q)
        d = pull_rows(d, dy, c, weight, dweight, dbias, r, n, tl.program_id(0) == 0, F, F)
    de = load_columns(denhanced, b, n, B, F)
    store_columns(df, load_columns(df, b, n, B, F) + de, b, n, B, F)
    d += de * load_columns(clf_gate, b, n, B, F)
    total, along = tl.sum(d, 0), tl.sum(d * unit, 0)
    if dnorm_weight is not None:
        tl.store(dnorm_weight + n, along, mask=inside)
    if dnorm_bias is not None:
        tl.store(dnorm_bias + n, total, mask=inside)
    if TRAINING:
        d -= (total[None, :] + along[None, :] * unit) / B
    d *= (tl.load(norm_weight + n, mask=inside, other=0.0) * tl.load(slope + n, mask=inside, other=0.0))[None, :]
    d = tl.where(load_columns(context, b, n, B, F) <= 0, 0.0, d)
    store_columns(dcontext, d, b, n, B, F)


@triton.jit
def interaction_rows_bwd_kernel(
    mean, pooled, f, gain, seg_gate, context_weight, gain_weight, seg_gate_weight, dcontext, dmu,
    df, dpooled, dmean, dcontext_weight, dcontext_bias, dgain_weight, dgain_bias, dseg_gate_weight, dseg_gate_bias,
    B, C, P, F, tau,
    S: tl.constexpr, BB: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Columns of the layers of the context, the gain and the map's gate, and the gradients of their parameters."""
    b, pid = tl.arange(0, BB), tl.program_id(0)
    d = tl.zeros([BB, BN], tl.float32)
    first, second = tl.cdiv(P, BN), tl.cdiv(P, BN) + tl.cdiv(F, BN)
    if pid < first:
        n = pid * BN + tl.arange(0, BN)
        x = load_columns(pooled, b, n, B, P)
        for start in range(0, F, BR):
            r = start + tl.arange(0, BR)
            dy = load_columns(dcontext, b, r, B, F)
            d = pull_rows(d, dy, x, context_weight, dcontext_weight, dcontext_bias, r, n, pid == 0, F, P)
        if dpooled is not None:
            store_columns(dpooled, d, b, n, B, P)
    elif pid < second:
        n = (pid - first) * BN + tl.arange(0, BN)
        x = load_columns(f, b, n, B, F)
        for start in range(0, C, BR):
            r = start + tl.arange(0, BR)
            s = load_columns(gain, b, r, B, C)
            dy = load_columns(dmu, b, r, B, C) * tau * load_columns(seg_gate, b, r, B, C) * s * (1 - s)
            d = pull_rows(d, dy, x, gain_weight, dgain_weight, dgain_bias, r, n, pid == first, C, F)
        store_columns(df, load_columns(df, b, n, B, F) + d, b, n, B, F)
    else:
        n = (pid - second) * BN + tl.arange(0, BN)
        x = load_columns(mean, b, n, B, C)
        for start in range(0, C, BR):
            r = start + tl.arange(0, BR)
            g = load_columns(seg_gate, b, r, B, C)
            dy = load_columns(dmu, b, r, B, C) * tau * load_columns(gain, b, r, B, C) * g * (1 - g)
            d = pull_rows(d, dy, x, seg_gate_weight, dseg_gate_weight, dseg_gate_bias, r, n, pid == second, C, C)
        if dmean is not None:
            if S == 3:
                d += load_columns(dmean, b, n, B, C)
            store_columns(dmean, d, b, n, B, C)


# --- launch -----------------------------------------------------------------------------------------------------------


def backward(
    sizes, numbers, alignment, training, sums, f, normaliser, weights, results, outputs, dinputs, dweights
) -> None:
    """Writes the requested gradients.

    The arguments are those of `forward`, with its results, and three more. `outputs`: the gradients of factors, mu,
    clf, enhanced, gates and the three signals; None for zeros. `dinputs` and `dweights`: the tensors for the gradients
    of mean, variance, energy, pooled and f, and of the weights; None if a gradient is not wanted.
    """
    B, C, P, F, H, Q = sizes
    mean, variance, _, pooled = sums
    mu, enhanced, gates, *signals, kept = results
    context, clf_gate, gain, seg_gate, seg_query, clf_query, centre, slope = kept_parts(kept, B, C, F, Q)
    *layers, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, _, seg_proj, clf_proj = weights
    context_weight, _, gate_weight, _, gain_weight, _, seg_gate_weight, _ = layers
    *dlayers, dnorm_weight, dnorm_bias, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias, dseg_proj, dclf_proj = dweights
    dcontext_weight, dcontext_bias, dgate_weight, dgate_bias, *dothers = dlayers
    dfactors, dmu_given, dclf, denhanced_given, dgates, *dsignals_given = outputs
    dmean, dvariance, denergy, dpooled, df_wanted = dinputs
    S, BB = 3 if alignment else 2, padded_images(B)
    dlogits, dsignals, dmu = f.new_empty(B, 2), f.new_empty(S, B), f.new_empty(B, C)
    denhanced, dcontext, dseg_query, dclf_query = (f.new_empty(B, n) for n in (F, F, Q, Q))
    df = f.new_empty(B, F) if df_wanted is None else df_wanted
    # a program sums two products at once; more stages or fewer warps would need more registers than there are
    shared = {"BB": BB, "BN": SIDE, "BR": DEPTH, "num_warps": 2 * WARPS, "num_stages": 2}
    rows = {"BB": BB, "BC": power_of_two(C), "BF": power_of_two(F), "num_warps": WARPS}
    upa, dupa = (fc1_weight, fc1_bias, fc2_weight), (dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias)
    blocks, channels = triton.cdiv(F, SIDE), triton.cdiv(C, SIDE)
    with on_device(f):
        interaction_gates_bwd_kernel[(B,)](
            f, mu, enhanced, *signals, normaliser, gates, *upa, dfactors, dclf, dgates, dlogits, dsignals,
            B, C, F, H, S=S, BH=power_of_two(H), **rows,
        )  # fmt: skip
        if any(d is not None for d in dupa):
            interaction_upa_bwd_kernel[(1,)](
                *signals, normaliser, *upa, dlogits, *dupa, B, H, S=S, BB=BB, BH=power_of_two(H), num_warps=WARPS
            )
        interaction_signals_bwd_kernel[(B,)](
            variance, mu, enhanced, seg_query, clf_query, gates, *signals, normaliser, dsignals,
            dfactors, dmu_given, dclf, denhanced_given, *dsignals_given,
            dmu, denhanced, df, dvariance, denergy, dseg_query, dclf_query, B, C, F, Q,
            S=S, BQ=power_of_two(max(Q, 1)), **rows,
        )  # fmt: skip
        if alignment:
            interaction_queries_bwd_kernel[(channels + blocks,)](
                mean, f, mu, enhanced, seg_proj, clf_proj, dseg_query, dclf_query,
                dmu, dmean, denhanced, df, dseg_proj, dclf_proj, B, C, F, Q, **shared,
            )  # fmt: skip
        interaction_gate_bwd_kernel[(blocks,)](
            context, clf_gate, centre, slope, gate_weight, norm_weight, norm_bias, denhanced,
            df, dcontext, dgate_weight, dgate_bias, dnorm_weight, dnorm_bias, B, F, TRAINING=training, **shared,
        )  # fmt: skip
        interaction_rows_bwd_kernel[(triton.cdiv(P, SIDE) + blocks + channels,)](
            mean, pooled, f, gain, seg_gate, context_weight, gain_weight, seg_gate_weight, dcontext, dmu,
            df, dpooled, dmean, dcontext_weight, dcontext_bias, *dothers, B, C, P, F, numbers[0], S=S, **shared,
        )  # fmt: skip
