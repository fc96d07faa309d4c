r"""Task interaction in Triton, forward and backward: formulas and letters as in mtlkit/ops/interaction.py.

`reduce_forward` gathers what one reading pass over a map can: moments, gradient energy and the pooled projection. A
program takes a tile of pixels of one image through all channels; the projected map is an accumulator that is summed over
the tile's pixels and never written. Each program leaves partial sums, and `interaction_combine_kernel` adds them up in a
fixed order: no atomics, results repeat bit by bit. Moments are taken about each channel's first pixel, the tiles' means
and sums of squares about them combined as Chan et al. do.

`reduce_backward` forms the projected map again. Up to SMALL_CHANNELS a program holds all channels of its tile and the
whole projection, so that one reading of the map gives all gradients. Beyond, a first pass keeps the map's signs, one
bit each, and with attention two numbers a pixel; the gradients of the map and of the weights then need no projection.
Products run in the dtype of the map, on factors that are signs or normalised, so that float16 does not underflow.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtlkit.kernels._launch import check_dtypes, on_device, processors
from mtlkit.kernels._tables import power_of_two

# --- tiles of a map ---------------------------------------------------------------------------------------------------


@triton.jit
def _offsets(index, stride, WIDE: tl.constexpr):
    """Where the elements of an axis lie."""
    if WIDE:
        offsets = index.to(tl.int64) * stride
    else:
        offsets = index * stride
    return offsets


@triton.jit
def _finite_or_zero(x):
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@triton.jit
def _rectified(z):
    """max(z, 0), but NaN stays."""
    return tl.where(z < 0, 0.0, z)


@triton.jit
def _positive(z):
    """1 where the rectified value lets a gradient through."""
    return tl.where(z <= 0, 0.0, 1.0)


# --- reduce, forward --------------------------------------------------------------------------------------------------


@triton.jit
def interaction_reduce_fwd_kernel(
    x, weight, bias, attn, means, squares, energies, sums, tops,
    C, P, L, W, tiles,
    sx_b, sx_c, sx_l, sw_p, sw_c,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Of a tile of pixels: means and squares (B, tiles, C) about the first pixel, energies (B, tiles), sums (B, tiles,
    P) of the projected map, and with attention tops (B, tiles, 2), the largest logit and the sum of exponentials.
    """
    row = tl.program_id(0).to(tl.int64)  # image * tiles + tile
    image, tile = row // tiles, (row % tiles).to(tl.int32)
    lead = tl.program_id(1) == 0
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    l = tile * BL + tl.arange(0, BL)  # noqa: E741 - the formula's letter
    here = l < L
    count = tl.minimum(BL, L - tile * BL).to(tl.float32)
    x += image * sx_b
    pixels = _offsets(l, sx_l, WIDE)
    z = tl.zeros([BP, BL], tl.float32)
    logits = tl.zeros([BL], tl.float32)
    energy = tl.zeros([BL], tl.float32)
    for k in range(0, C, BK):
        c = k + tl.arange(0, BK)
        channels = _offsets(c, sx_c, WIDE)
        inside = (c < C)[:, None] & here[None, :]
        at = x + channels[:, None] + pixels[None, :]
        v = tl.load(at, mask=inside, other=0.0)  # [BK, BL]
        v32 = v.to(tl.float32)
        if lead:
            shift = _finite_or_zero(tl.load(x + channels, mask=c < C, other=0.0).to(tl.float32))
            d = tl.where(here[None, :], v32 - shift[:, None], 0.0)
            mean = tl.sum(d, 1) / count
            d = tl.where(here[None, :], d - mean[:, None], 0.0)
            tl.store(means + row * C + c, mean, mask=c < C)
            tl.store(squares + row * C + c, tl.sum(d * d, 1), mask=c < C)
            if energies is not None:
                right = inside & (l % W + 1 < W)[None, :]
                down = inside & (l + W < L)[None, :]
                across = tl.load(at + sx_l, mask=right, other=0.0).to(tl.float32) - v32
                below = tl.load(at + W * sx_l, mask=down, other=0.0).to(tl.float32) - v32
                energy += tl.sum(tl.where(right, tl.abs(across), 0.0) + tl.where(down, tl.abs(below), 0.0), 0)
        if weight is not None:
            there = (p < P)[:, None] & (c < C)[None, :]
            w = tl.load(weight + p[:, None] * sw_p + c[None, :] * sw_c, mask=there, other=0.0).to(v.dtype)
            z = tl.dot(w, v, z, input_precision=PRECISION)
        if attn is not None:
            a = tl.load(attn + c, mask=c < C, other=0.0).to(tl.float32)
            logits += tl.sum(a[:, None] * v32, 0)
    if energies is not None:
        if lead:
            tl.store(energies + row, tl.sum(energy, 0))
    if weight is not None:
        z = _rectified(z + tl.load(bias + p, mask=p < P, other=0.0).to(tl.float32)[:, None])
        if attn is not None:
            logits = tl.where(here, logits, float("-inf"))
            top = tl.max(logits, 0)
            share = tl.where(here, tl.exp(logits - top), 0.0)
            if lead:
                tl.store(tops + row * 2, top)
                tl.store(tops + row * 2 + 1, tl.sum(share, 0))
            pooled = tl.sum(tl.where(here[None, :], z * share[None, :], 0.0), 1)
        else:
            pooled = tl.sum(tl.where(here[None, :], z, 0.0), 1)
        tl.store(sums + row * P + p, pooled, mask=p < P)


@triton.jit
def interaction_combine_kernel(
    x, means, squares, energies, sums, tops, mean, variance, energy, pooled, softmax,
    C, P, L, tiles, tile_pixels,
    sx_b, sx_c,
    WIDE: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """An image's results from those of its tiles."""
    image = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = c < C
    shift = tl.load(x + image * sx_b + _offsets(c, sx_c, WIDE), mask=inside, other=0.0).to(tl.float32)
    first = image * tiles
    about = tl.zeros([BC], tl.float32)
    for start in range(0, tiles, BT):
        t = start + tl.arange(0, BT)
        count = tl.minimum(tile_pixels, L - t * tile_pixels).to(tl.float32)
        at = (first + t)[:, None] * C + c[None, :]
        part = tl.load(means + at, mask=(t < tiles)[:, None] & inside[None, :], other=0.0)
        about += tl.sum(tl.where((t < tiles)[:, None], part * count[:, None], 0.0), 0)
    about /= L
    square = tl.zeros([BC], tl.float32)
    for start in range(0, tiles, BT):
        t = start + tl.arange(0, BT)
        count = tl.minimum(tile_pixels, L - t * tile_pixels).to(tl.float32)
        at = (first + t)[:, None] * C + c[None, :]
        mask = (t < tiles)[:, None] & inside[None, :]
        d = tl.load(means + at, mask=mask, other=0.0) - about[None, :]
        part = tl.load(squares + at, mask=mask, other=0.0) + d * d * count[:, None]
        square += tl.sum(tl.where(mask, part, 0.0), 0)
    tl.store(mean + image * C + c, _finite_or_zero(shift) + about, mask=inside)
    tl.store(variance + image * C + c, square / L, mask=inside)

    if energies is not None:
        if tl.program_id(1) == 0:
            total = tl.zeros([BT], tl.float32)
            for start in range(0, tiles, BT):
                t = start + tl.arange(0, BT)
                total += tl.load(energies + first + t, mask=t < tiles, other=0.0)
            tl.store(energy + image, tl.sum(total, 0) / (C.to(tl.float32) * L))

    if sums is not None:
        inside = c < P
        total = tl.zeros([BC], tl.float32)
        weight = tl.zeros([BT], tl.float32)
        if tops is not None:
            largest = tl.full([BT], float("-inf"), tl.float32)
            for start in range(0, tiles, BT):
                t = start + tl.arange(0, BT)
                largest = tl.maximum(largest, tl.load(tops + (first + t) * 2, mask=t < tiles, other=float("-inf")))
            top = tl.max(largest, 0)
        for start in range(0, tiles, BT):
            t = start + tl.arange(0, BT)
            at = (first + t)[:, None] * P + c[None, :]
            part = tl.load(sums + at, mask=(t < tiles)[:, None] & inside[None, :], other=0.0)
            if tops is not None:
                found = tl.load(tops + (first + t) * 2, mask=t < tiles, other=float("-inf"))
                factor = tl.where(t < tiles, tl.exp(found - top), 0.0)
                weight += factor * tl.load(tops + (first + t) * 2 + 1, mask=t < tiles, other=0.0)
                part *= factor[:, None]
            total += tl.sum(part, 0)
        if tops is not None:
            whole = tl.sum(weight, 0)
            tl.store(pooled + image * P + c, total / whole, mask=inside)
            if tl.program_id(1) == 0:
                tl.store(softmax + image * 2, top)
                tl.store(softmax + image * 2 + 1, whole)
        else:
            tl.store(pooled + image * P + c, total / L, mask=inside)


# --- scale ------------------------------------------------------------------------------------------------------------


@triton.jit
def interaction_scale_fwd_kernel(
    x, factors, y,
    C, L, tiles,
    sx_b, sx_c, sx_l, sy_b, sy_c, sy_l,
    WIDE: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """x times a factor (B, C) for each channel."""
    image = (tl.program_id(0) // tiles).to(tl.int64)
    l = tl.program_id(0) % tiles * BL + tl.arange(0, BL)  # noqa: E741 - the formula's letter
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (c < C)[:, None] & (l < L)[None, :]
    factor = tl.load(factors + image * C + c, mask=c < C, other=0.0)
    at = _offsets(c, sx_c, WIDE)[:, None] + _offsets(l, sx_l, WIDE)[None, :]
    v = tl.load(x + image * sx_b + at, mask=inside, other=0.0).to(tl.float32)
    at = _offsets(c, sy_c, WIDE)[:, None] + _offsets(l, sy_l, WIDE)[None, :]
    tl.store(y + image * sy_b + at, v * factor[:, None], mask=inside)


@triton.jit
def interaction_scale_bwd_kernel(
    x, dy, parts,
    C, L, chunks, chunk_tiles,
    sx_b, sx_c, sx_l, sy_b, sy_c, sy_l,
    WIDE: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """The sum of dy x over a chunk of the pixels, into parts (B, chunks, C)."""
    image = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    x += image * sx_b + _offsets(c, sx_c, WIDE)[:, None]
    dy += image * sy_b + _offsets(c, sy_c, WIDE)[:, None]
    total = tl.zeros([BC, BL], tl.float32)
    for tile in range(chunk_tiles):
        l = (chunk * chunk_tiles + tile) * BL + tl.arange(0, BL)  # noqa: E741 - the formula's letter
        inside = (c < C)[:, None] & (l < L)[None, :]
        v = tl.load(x + _offsets(l, sx_l, WIDE)[None, :], mask=inside, other=0.0).to(tl.float32)
        g = tl.load(dy + _offsets(l, sy_l, WIDE)[None, :], mask=inside, other=0.0).to(tl.float32)
        total += v * g
    tl.store(parts + (image * chunks + chunk) * C + c, tl.sum(total, 1), mask=c < C)


# --- reduce, backward -------------------------------------------------------------------------------------------------


@triton.jit
def _map_gradient(
    v32, at_x, at_y, inside, c, l, image,
    mean, dmean, dvariance, denergy, dy, factors,
    C, L, W, sx_l,
):  # fmt: skip
    """The gradient of a tile [BC, BL] of the map through moments and energy, plus dy times the factors."""
    channel = image * C + c
    there = c < C
    gradient = tl.zeros(v32.shape, tl.float32)
    if dvariance is not None:
        about = tl.load(mean + channel, mask=there, other=0.0)
        slope = tl.load(dvariance + channel, mask=there, other=0.0) * 2.0 / L
        gradient += (v32 - about[:, None]) * slope[:, None]
    if dmean is not None:
        gradient += (tl.load(dmean + channel, mask=there, other=0.0) / L)[:, None]
    if denergy is not None:
        slope = tl.load(denergy + image) / (C.to(tl.float32) * L)
        column = l % W
        side = inside & (column > 0)[None, :]
        d = v32 - tl.load(at_x - sx_l, mask=side, other=0.0).to(tl.float32)
        signs = tl.where(side, tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0)), 0.0)
        side = inside & (column + 1 < W)[None, :]
        d = v32 - tl.load(at_x + sx_l, mask=side, other=0.0).to(tl.float32)
        signs += tl.where(side, tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0)), 0.0)
        side = inside & (l >= W)[None, :]
        d = v32 - tl.load(at_x - W * sx_l, mask=side, other=0.0).to(tl.float32)
        signs += tl.where(side, tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0)), 0.0)
        side = inside & (l + W < L)[None, :]
        d = v32 - tl.load(at_x + W * sx_l, mask=side, other=0.0).to(tl.float32)
        signs += tl.where(side, tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0)), 0.0)
        gradient += signs * slope
    if dy is not None:
        factor = tl.load(factors + channel, mask=there, other=0.0)
        gradient += tl.load(at_y, mask=inside, other=0.0).to(tl.float32) * factor[:, None]
    return gradient


@triton.jit
def _normalised(dpooled, image, p, P, PADDED: tl.constexpr):
    """An image's gradient of the pooled projection at p over its largest entry, and that entry."""
    every = tl.arange(0, PADDED)
    largest = tl.max(tl.abs(tl.load(dpooled + image * P + every, mask=every < P, other=0.0)), 0)
    return tl.load(dpooled + image * P + p, mask=p < P, other=0.0) / tl.where(largest > 0, largest, 1.0), largest


@triton.jit
def _attention_base(dpooled, pooled, image, P, PADDED: tl.constexpr):
    """What the attention's shares lose by their sum being 1: the product of dpooled and pooled."""
    every = image * P + tl.arange(0, PADDED)
    mask = tl.arange(0, PADDED) < P
    return tl.sum(tl.load(dpooled + every, mask=mask, other=0.0) * tl.load(pooled + every, mask=mask, other=0.0), 0)


@triton.jit
def interaction_reduce_bwd_kernel(
    x, weight, bias, attn, mean, pooled, softmax, dmean, dvariance, denergy, dpooled, dy, factors,
    dx, dweight, dbias, dattn,
    C, P, L, W, chunks, chunk_tiles,
    sx_b, sx_c, sx_l, sy_b, sy_c, sy_l, sd_b, sd_c, sd_l, sw_p, sw_c,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """All gradients of a chunk of an image's pixels, for P <= BP and C <= BC: dx, and partial sums over the chunk of
    those of the parameters, (B, chunks, P, C), (B, chunks, P) and (B, chunks, C).
    """
    row = tl.program_id(0).to(tl.int64)  # image * chunks + chunk
    image, chunk = row // chunks, (row % chunks).to(tl.int32)
    p, c = tl.arange(0, BP), tl.arange(0, BC)
    there = (p < P)[:, None] & (c < C)[None, :]
    w = tl.load(weight + p[:, None] * sw_p + c[None, :] * sw_c, mask=there, other=0.0).to(x.dtype.element_ty)
    b = tl.load(bias + p, mask=p < P, other=0.0).to(tl.float32)
    g, largest = _normalised(dpooled, image, p, P, BP)
    back = tl.trans((w.to(tl.float32) * g[:, None]).to(w.dtype))  # [BC, BP]
    if attn is not None:
        a = tl.load(attn + c, mask=c < C, other=0.0).to(tl.float32)
        top, whole = tl.load(softmax + image * 2), tl.load(softmax + image * 2 + 1)
        base = _attention_base(dpooled, pooled, image, P, BP)
        sum_a = tl.zeros([BC], tl.float32)
    else:
        whole = L.to(tl.float32)
    sum_w = tl.zeros([BP, BC], tl.float32)
    sum_b = tl.zeros([BP], tl.float32)
    x += image * sx_b + _offsets(c, sx_c, WIDE)[:, None]
    if dx is not None:
        dx += image * sd_b + _offsets(c, sd_c, WIDE)[:, None]
    if dy is not None:
        dy += image * sy_b + _offsets(c, sy_c, WIDE)[:, None]
    for tile in range(chunk_tiles):
        l = (chunk * chunk_tiles + tile) * BL + tl.arange(0, BL)  # noqa: E741 - the formula's letter
        here = l < L
        inside = (c < C)[:, None] & here[None, :]
        at_x = x + _offsets(l, sx_l, WIDE)[None, :]
        v = tl.load(at_x, mask=inside, other=0.0)  # [BC, BL]
        z = tl.dot(w, v, input_precision=PRECISION) + b[:, None]  # [BP, BL]
        m = tl.where(here[None, :], _positive(z), 0.0)
        u = tl.dot(back, m.to(v.dtype), input_precision=PRECISION)  # [BC, BL], over whole / largest
        v32 = v.to(tl.float32)
        if attn is not None:
            e = tl.where(here, tl.exp(tl.sum(a[:, None] * v32, 0) - top), 0.0)  # [BL]
            reached = tl.sum(tl.where((p < P)[:, None], _rectified(z) * g[:, None], 0.0), 0) * largest
            dlogit = e / whole * (reached - base)
            sum_a += tl.sum(dlogit[None, :] * v32, 1)
            m *= e[None, :]
        sum_w = tl.dot(m.to(v.dtype), tl.trans(v), sum_w, input_precision=PRECISION)
        sum_b += tl.sum(m, 1)
        if dx is not None:
            at_y = None
            if dy is not None:
                at_y = dy + _offsets(l, sy_l, WIDE)[None, :]
            gradient = _map_gradient(
                v32, at_x, at_y, inside, c, l, image, mean, dmean, dvariance, denergy, dy, factors, C, L, W, sx_l
            )
            if attn is not None:
                gradient += u * (e * (largest / whole))[None, :] + a[:, None] * dlogit[None, :]
            else:
                gradient += u * (largest / whole)
            tl.store(dx + _offsets(l, sd_l, WIDE)[None, :], gradient, mask=inside)
    g *= largest / whole
    tl.store(dweight + (row * P + p[:, None]) * C + c[None, :], sum_w * g[:, None], mask=there)
    tl.store(dbias + row * P + p, sum_b * g, mask=p < P)
    if attn is not None:
        tl.store(dattn + row * C + c, sum_a, mask=c < C)


@triton.jit
def interaction_signs_kernel(
    x, weight, bias, attn, softmax, dpooled, signs, reached, shares,
    C, P, L, tiles,
    sx_b, sx_c, sx_l, sw_p, sw_c,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Which entries of the projected map let a gradient through: signs (B, ceil(P / 32), L), bit p % 32 of a word.

    With attention also reached (B, blocks of P, L), the product of dpooled and the rectified map, and shares (B, L),
    the exponential of each logit less the largest.
    """
    image, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    l = tile * BL + tl.arange(0, BL)  # noqa: E741 - the formula's letter
    here = l < L
    x += image * sx_b
    pixels = _offsets(l, sx_l, WIDE)
    z = tl.zeros([BP, BL], tl.float32)
    logits = tl.zeros([BL], tl.float32)
    for k in range(0, C, BK):
        c = k + tl.arange(0, BK)
        inside = (c < C)[:, None] & here[None, :]
        v = tl.load(x + _offsets(c, sx_c, WIDE)[:, None] + pixels[None, :], mask=inside, other=0.0)  # [BK, BL]
        there = (p < P)[:, None] & (c < C)[None, :]
        w = tl.load(weight + p[:, None] * sw_p + c[None, :] * sw_c, mask=there, other=0.0).to(v.dtype)
        z = tl.dot(w, v, z, input_precision=PRECISION)
        if attn is not None:
            a = tl.load(attn + c, mask=c < C, other=0.0).to(tl.float32)
            logits += tl.sum(a[:, None] * v.to(tl.float32), 0)
    z += tl.load(bias + p, mask=p < P, other=0.0).to(tl.float32)[:, None]
    WORDS: tl.constexpr = BP // 32
    bits = tl.reshape(_positive(z).to(tl.int32), [WORDS, 32, BL]) << tl.arange(0, 32)[None, :, None]
    word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    words = tl.cdiv(P, 32)
    at = signs + (image * words + word[:, None]) * L + l[None, :]
    tl.store(at, tl.sum(bits, 1), mask=(word < words)[:, None] & here[None, :])
    if attn is not None:
        g = tl.load(dpooled + image * P + p, mask=p < P, other=0.0)
        part = tl.sum(tl.where((p < P)[:, None], _rectified(z) * g[:, None], 0.0), 0)
        tl.store(reached + (image * tl.num_programs(1) + tl.program_id(1)) * L + l, part, mask=here)
        if tl.program_id(1) == 0:
            tl.store(shares + image * L + l, tl.exp(logits - tl.load(softmax + image * 2)), mask=here)


@triton.jit
def _load_signs(signs, image, first, l, P, L, BP: tl.constexpr, BL: tl.constexpr):
    """Rows [first, first + BP) of the signs at pixels l as ones and zeros in float32, [BP, BL]; first is a multiple of BP."""
    WORDS: tl.constexpr = BP // 32
    words = tl.cdiv(P, 32)
    word = first // 32 + tl.arange(0, WORDS)
    at = signs + (image * words + word[:, None]) * L + l[None, :]
    packed = tl.load(at, mask=(word < words)[:, None] & (l < L)[None, :], other=0)  # [WORDS, BL]
    bits = (packed[:, None, :] >> tl.arange(0, 32)[None, :, None]) & 1
    return tl.reshape(bits, [BP, BL]).to(tl.float32)


@triton.jit
def _dlogit(reached, shares, image, l, L, blocks, base, whole):
    """The gradient of the attention's logits at pixels l, and their shares before division by the sum."""
    here = l < L
    e = tl.load(shares + image * L + l, mask=here, other=0.0)
    total = tl.zeros(l.shape, tl.float32)
    for i in range(blocks):
        total += tl.load(reached + (image * blocks + i) * L + l, mask=here, other=0.0)
    return tl.where(here, e / whole * (total - base), 0.0), e


@triton.jit
def interaction_map_bwd_kernel(
    x, weight, attn, mean, pooled, softmax, dmean, dvariance, denergy, dpooled, dy, factors, signs, reached, shares, dx,
    C, P, L, W, tiles, blocks,
    sx_b, sx_c, sx_l, sy_b, sy_c, sy_l, sd_b, sd_c, sd_l, sw_p, sw_c,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, PADDED: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """The gradient of the map; through the projection by its signs."""
    image, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    l = tile * BL + tl.arange(0, BL)  # noqa: E741 - the formula's letter
    here = l < L
    inside = (c < C)[:, None] & here[None, :]
    u = tl.zeros([BC, BL], tl.float32)
    if dpooled is not None:
        largest = 0.0
        for first in range(0, P, BP):
            p = first + tl.arange(0, BP)
            g, largest = _normalised(dpooled, image, p, P, PADDED)
            there = (p < P)[:, None] & (c < C)[None, :]
            w = tl.load(weight + p[:, None] * sw_p + c[None, :] * sw_c, mask=there, other=0.0).to(x.dtype.element_ty)
            back = tl.trans((w.to(tl.float32) * g[:, None]).to(w.dtype))  # [BC, BP]
            m = _load_signs(signs, image, first, l, P, L, BP, BL)
            u = tl.dot(back, m.to(w.dtype), u, input_precision=PRECISION)
        if attn is not None:
            a = tl.load(attn + c, mask=c < C, other=0.0).to(tl.float32)
            whole = tl.load(softmax + image * 2 + 1)
            base = _attention_base(dpooled, pooled, image, P, PADDED)
            dlogit, e = _dlogit(reached, shares, image, l, L, blocks, base, whole)
            u = u * (e * (largest / whole))[None, :] + a[:, None] * dlogit[None, :]
        else:
            u *= largest / L
    at_x = x + image * sx_b + _offsets(c, sx_c, WIDE)[:, None] + _offsets(l, sx_l, WIDE)[None, :]
    v32 = tl.load(at_x, mask=inside, other=0.0).to(tl.float32)
    at_y = None
    if dy is not None:
        at_y = dy + image * sy_b + _offsets(c, sy_c, WIDE)[:, None] + _offsets(l, sy_l, WIDE)[None, :]
    u += _map_gradient(
        v32, at_x, at_y, inside, c, l, image, mean, dmean, dvariance, denergy, dy, factors, C, L, W, sx_l
    )
    at = image * sd_b + _offsets(c, sd_c, WIDE)[:, None] + _offsets(l, sd_l, WIDE)[None, :]
    tl.store(dx + at, u, mask=inside)


@triton.jit
def interaction_weight_bwd_kernel(
    x, attn, pooled, softmax, dpooled, signs, reached, shares, dweight, dbias, dattn,
    C, P, L, tiles, items, share_items, blocks,
    sx_b, sx_c, sx_l,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, PADDED: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Partial sums over a share of the items, tiles of images, of the gradients of the parameters: (shares, P, C),
    (shares, P) and (shares, C).
    """
    part = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BP
    p = first + tl.arange(0, BP)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    channels = _offsets(c, sx_c, WIDE)
    sum_w = tl.zeros([BP, BC], tl.float32)
    sum_b = tl.zeros([BP], tl.float32)
    sum_a = tl.zeros([BC], tl.float32)
    start = tl.program_id(0) * share_items
    for item in range(start, tl.minimum(start + share_items, items)):
        image, tile = (item // tiles).to(tl.int64), item % tiles
        l = tile * BL + tl.arange(0, BL)  # noqa: E741 - the formula's letter
        here = l < L
        inside = (c < C)[:, None] & here[None, :]
        v = tl.load(x + image * sx_b + channels[:, None] + _offsets(l, sx_l, WIDE)[None, :], mask=inside, other=0.0)
        m = tl.where(here[None, :], _load_signs(signs, image, first, l, P, L, BP, BL), 0.0)
        g, largest = _normalised(dpooled, image, p, P, PADDED)
        if attn is not None:
            whole = tl.load(softmax + image * 2 + 1)
            base = _attention_base(dpooled, pooled, image, P, PADDED)
            dlogit, e = _dlogit(reached, shares, image, l, L, blocks, base, whole)
            sum_a += tl.sum(dlogit[None, :] * v.to(tl.float32), 1)
            m *= e[None, :]
            g *= largest / whole
        else:
            g *= largest / L
        sum_w += tl.dot(m.to(v.dtype), tl.trans(v), input_precision=PRECISION) * g[:, None]
        sum_b += tl.sum(m, 1) * g
    there = (p < P)[:, None] & (c < C)[None, :]
    tl.store(dweight + (part * P + p[:, None]) * C + c[None, :], sum_w, mask=there)
    if tl.program_id(2) == 0:
        tl.store(dbias + part * P + p, sum_b, mask=p < P)
    if attn is not None:
        if first == 0:
            tl.store(dattn + part * C + c, sum_a, mask=c < C)


# --- launch -----------------------------------------------------------------------------------------------------------

SMALL_CHANNELS = 128  # up to these the backward pass is one kernel
FULL = 4  # programs of a processor that a launch of many tiles aims at
COMBINED_TILES, COMBINED_CHANNELS = 64, 32


def _precision(x: Tensor) -> str:
    """Three products in tf32 come to float32's own rounding; 16-bit maps have nothing to be split."""
    return "tf32x3" if x.dtype == torch.float32 else "ieee"


def _block(size: int, most: int) -> int:
    """A power of two, at least 32 and at most `most`, that covers `size` in few blocks."""
    return max(32, min(most, power_of_two(size)))


def _is_wide(*maps: Tensor | None) -> bool:
    """Whether an offset within one image may pass 31 bits; the row below a tile counts."""
    reach = (
        sum((n + 1) * abs(s) for n, s in zip(t.shape[1:], t.stride()[1:], strict=True)) for t in maps if t is not None
    )
    return any(r >= 1 << 30 for r in reach)


def _rows(x: Tensor) -> Tensor:
    """(B, C, L) of (B, C, H, W); no copy where strides allow, as NCHW's and channels-last's do."""
    return x.flatten(2)


def _new_map(x: Tensor) -> Tensor:
    """NCHW or channels-last, whichever is nearer to x."""
    channels_last = x.stride(1) == 1 and x.shape[1] > 1
    return torch.empty_like(x, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _strides(rows: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if rows is None else rows.stride()


def _check(x: Tensor, *others: Tensor | None) -> None:
    check_dtypes("task_interaction", x, *others)


def reduce_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, attn: Tensor | None, energy: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Mean and variance (B, C), energy (B,), pooled projection (B, P), and the softmax's largest logit and sum (B, 2).

    Everything in float32; what is not wanted has 0 for its last axis, the energy for its only one. Arguments as those
    of `mtlkit.ops.interaction`: map (B, C, H, W), weight (P, C), bias (P,), attn (C,), checked by the caller.

    Raises:
        TypeError: an input of another dtype than float32, bfloat16 and float16.
    """
    _check(x, weight, bias, attn)
    B, C, H, W = x.shape
    P = 0 if weight is None else weight.shape[0]

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    mean, variance, energies = new(B, C), new(B, C), new(B * energy)
    pooled, softmax = new(B, P), new(B, 2 * (attn is not None))
    if B == 0:
        return mean, variance, energies, pooled, softmax
    rows, L = _rows(x), H * W
    BL = 64 if L <= 512 else 128
    BP = _block(P, 128)
    tiles = triton.cdiv(L, BL)
    parts = {
        "means": new(B, tiles, C),
        "squares": new(B, tiles, C),
        "energies": new(B, tiles) if energy else None,
        "sums": new(B, tiles, P) if P else None,
        "tops": new(B, tiles, 2) if attn is not None else None,
    }
    wide = _is_wide(x)
    vectors = (None if t is None else t.contiguous() for t in (bias, attn))
    with on_device(x):
        interaction_reduce_fwd_kernel[(B * tiles, max(1, triton.cdiv(P, BP)))](
            rows, weight, *vectors, *parts.values(),
            C, P, L, W, tiles,
            *rows.stride(), *((0, 0) if weight is None else weight.stride()),
            WIDE=wide, PRECISION=_precision(x), BP=BP, BK=32, BL=BL, num_warps=8 if BP * BL > 4096 else 4,
        )  # fmt: skip
        interaction_combine_kernel[(B, triton.cdiv(max(C, P), COMBINED_CHANNELS))](
            rows, *parts.values(), mean, variance, energies, pooled, softmax,
            C, P, L, tiles, BL,
            *rows.stride()[:2],
            WIDE=wide, BT=COMBINED_TILES, BC=COMBINED_CHANNELS,
        )  # fmt: skip
    return mean, variance, energies, pooled, softmax


def _tile_of(rows: Tensor) -> tuple[int, int]:
    """Channels and pixels of a tile for passes that only stream: long along what lies side by side."""
    return (64, 32) if rows.stride(1) == 1 and rows.stride(2) != 1 else (8, 256)


def scale_forward(x: Tensor, factors: Tensor) -> Tensor:
    """x (B, C, H, W) times float32 factors (B, C), in the dtype and memory format of x.

    Raises:
        TypeError: an input of another dtype than float32, bfloat16 and float16.
    """
    _check(x)
    y = _new_map(x)
    B, C, H, W = x.shape
    if B == 0:
        return y
    rows, L = _rows(x), H * W
    BC, BL = _tile_of(rows)
    tiles = triton.cdiv(L, BL)
    out = _rows(y)
    with on_device(x):
        interaction_scale_fwd_kernel[(B * tiles, triton.cdiv(C, BC))](
            rows, factors.contiguous(), out,
            C, L, tiles,
            *rows.stride(), *out.stride(),
            WIDE=_is_wide(x, y), BC=BC, BL=BL,
        )  # fmt: skip
    return y


def scale_backward(dy: Tensor, x: Tensor) -> Tensor:
    """The gradient of the factors, (B, C) in float32: the sum of dy x over the pixels.

    Raises:
        TypeError: an input of another dtype than float32, bfloat16 and float16.
    """
    _check(x, dy)
    B, C, H, W = x.shape
    if B == 0:
        return torch.zeros(B, C, dtype=torch.float32, device=x.device)
    rows, dy_rows, L = _rows(x), _rows(dy), H * W
    BC, BL = _tile_of(rows)
    tiles, blocks = triton.cdiv(L, BL), triton.cdiv(C, BC)
    chunk_tiles = triton.cdiv(tiles, max(1, min(tiles, FULL * processors(x) // (B * blocks))))
    chunks = triton.cdiv(tiles, chunk_tiles)
    parts = torch.empty(B, chunks, C, dtype=torch.float32, device=x.device)
    with on_device(x):
        interaction_scale_bwd_kernel[(B * chunks, blocks)](
            rows, dy_rows, parts,
            C, L, chunks, chunk_tiles,
            *rows.stride(), *dy_rows.stride(),
            WIDE=_is_wide(x, dy), BC=BC, BL=BL,
        )  # fmt: skip
    return parts.sum(1)


def reduce_backward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    attn: Tensor | None,
    mean: Tensor,
    pooled: Tensor,
    softmax: Tensor,
    dmean: Tensor | None,
    dvariance: Tensor | None,
    denergy: Tensor | None,
    dpooled: Tensor | None,
    dy: Tensor | None = None,
    factors: Tensor | None = None,
    map_wanted: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, in its dtype and memory format, and of weight, bias and attn in float32.

    Of what `reduce_forward` gave, mean, pooled and softmax come back, with the gradients of all, float32, None for
    zeros. Where dy is given, dy times the factors adds to the gradient of x. That is None unless `map_wanted`; those of
    the parameters are None without dpooled, which alone makes them.

    Raises:
        TypeError: an input of another dtype than float32, bfloat16 and float16.
    """
    _check(x, weight, bias, attn, dy)
    B, C, H, W = x.shape
    if B == 0:
        parameters = [None if t is None or dpooled is None else torch.zeros_like(t, dtype=torch.float32)
                      for t in (weight, bias, attn)]  # fmt: skip
        return torch.zeros_like(x) if map_wanted else None, *parameters
    dmean, dvariance, denergy, dpooled = (
        None if g is None else g.contiguous() for g in (dmean, dvariance, denergy, dpooled)
    )
    factors = None if dy is None else factors.contiguous()
    bias, attn = (None if t is None else t.contiguous() for t in (bias, attn))
    sums = (mean, pooled, softmax, dmean, dvariance, denergy, dpooled)
    dx = _new_map(x) if map_wanted else None
    with on_device(x):
        if dpooled is None:
            if dx is not None:
                _map_backward(x, weight, attn, sums, dy, factors, (None, None, None), dx)
            return dx, None, None, None
        if C <= SMALL_CHANNELS and weight.shape[0] <= SMALL_CHANNELS // 2:
            parts = _small_backward(x, weight, bias, attn, sums, dy, factors, dx)
        else:
            found = _signs(x, weight, bias, attn, softmax, dpooled)
            if dx is not None:
                _map_backward(x, weight, attn, sums, dy, factors, found, dx)
            parts = _weight_backward(x, weight, attn, sums, found)
    return dx, *(None if part is None else part.sum(0) for part in parts)


def _small_backward(x, weight, bias, attn, sums, dy, factors, dx) -> tuple[Tensor | None, ...]:
    """Partial sums of the gradients of the parameters; writes dx."""
    (B, C, H, W), P = x.shape, weight.shape[0]
    BP, BC, BL = _block(P, 64), _block(C, SMALL_CHANNELS), 64
    tiles = triton.cdiv(H * W, BL)
    chunk_tiles = triton.cdiv(tiles, max(1, min(tiles, processors(x) // B)))
    chunks = triton.cdiv(tiles, chunk_tiles)

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    parts = new(B * chunks, P, C), new(B * chunks, P), None if attn is None else new(B * chunks, C)
    rows, dy_rows, dx_rows = (None if t is None else _rows(t) for t in (x, dy, dx))
    interaction_reduce_bwd_kernel[(B * chunks,)](
        rows, weight, bias, attn, *sums, dy_rows, factors, dx_rows, *parts,
        C, P, H * W, W, chunks, chunk_tiles,
        *_strides(rows), *_strides(dy_rows), *_strides(dx_rows), *weight.stride(),
        WIDE=_is_wide(x, dy, dx), PRECISION=_precision(x), BP=BP, BC=BC, BL=BL, num_warps=8, num_stages=2,
    )  # fmt: skip
    return parts


def _signs(x, weight, bias, attn, softmax, dpooled) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Signs of the projected map, and with attention what each pixel reaches and its share."""
    (B, C, H, W), P, L = x.shape, weight.shape[0], x.shape[2] * x.shape[3]
    BP, BL = _block(P, 128), 64
    blocks = triton.cdiv(P, BP)
    signs = torch.empty(B, triton.cdiv(P, 32), L, dtype=torch.int32, device=x.device)
    reached = shares = None
    if attn is not None:
        reached = torch.empty(B, blocks, L, dtype=torch.float32, device=x.device)
        shares = torch.empty(B, L, dtype=torch.float32, device=x.device)
    rows, tiles = _rows(x), triton.cdiv(L, BL)
    interaction_signs_kernel[(B * tiles, blocks)](
        rows, weight, bias, attn, softmax, dpooled, signs, reached, shares,
        C, P, L, tiles,
        *rows.stride(), *weight.stride(),
        WIDE=_is_wide(x), PRECISION=_precision(x), BP=BP, BK=32, BL=BL, num_warps=8 if BP > 64 else 4,
    )  # fmt: skip
    return signs, reached, shares


def _map_backward(x, weight, attn, sums, dy, factors, found, dx) -> None:
    """Writes dx; `found` is what `_signs` gives."""
    (B, C, H, W), P, L = x.shape, 0 if weight is None else weight.shape[0], x.shape[2] * x.shape[3]
    BC, BL = _block(C, 64), 64
    rows, dy_rows, dx_rows = (None if t is None else _rows(t) for t in (x, dy, dx))
    tiles = triton.cdiv(L, BL)
    interaction_map_bwd_kernel[(B * tiles, triton.cdiv(C, BC))](
        rows, weight, attn, *sums, dy_rows, factors, *found, dx_rows,
        C, P, L, W, tiles, triton.cdiv(P, _block(P, 128)) if P else 0,
        *_strides(rows), *_strides(dy_rows), *_strides(dx_rows), *((0, 0) if weight is None else weight.stride()),
        WIDE=_is_wide(x, dy, dx), PRECISION=_precision(x), PADDED=power_of_two(max(P, 1)),
        BP=64 if P > 32 else 32, BC=BC, BL=BL, num_warps=8,
    )  # fmt: skip


def _weight_backward(x, weight, attn, sums, found) -> tuple[Tensor | None, ...]:
    """Partial sums of the gradients of the parameters; `found` is what `_signs` gives."""
    (B, C, H, W), P, L = x.shape, weight.shape[0], x.shape[2] * x.shape[3]
    BP, BC, BL = _block(P, 64), _block(C, 64), 64
    tiles = triton.cdiv(L, BL)
    blocks = triton.cdiv(P, BP), triton.cdiv(C, BC)
    share_items = triton.cdiv(B * tiles, max(1, min(B * tiles, FULL * processors(x) // (blocks[0] * blocks[1]))))
    count = triton.cdiv(B * tiles, share_items)

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    parts = new(count, P, C), new(count, P), None if attn is None else new(count, C)
    _, pooled, softmax, *_, dpooled = sums
    rows = _rows(x)
    interaction_weight_bwd_kernel[(count, *blocks)](
        rows, attn, pooled, softmax, dpooled, *found, *parts,
        C, P, L, tiles, B * tiles, share_items, triton.cdiv(P, _block(P, 128)),
        *rows.stride(),
        WIDE=_is_wide(x), PRECISION=_precision(x), PADDED=power_of_two(P),
        BP=BP, BC=BC, BL=BL, num_warps=8,
    )  # fmt: skip
    return parts
