"""Backward of the reducing pass of task interaction: its kernels and their launchers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtlkit.kernels._launch import processors
from mtlkit.kernels.interaction._maps import (
    FULL,
    along,
    block_of,
    is_wide,
    load_signs,
    new_signs,
    pixel_rows,
    positive,
    precision_of,
    rectified,
    stages_of,
    store_signs,
    strides_of,
)
from mtlkit.kernels.tables import power_of_two

# --- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit
def _map_gradient(
    v32, at_x, at_y, inside, c, i, image,
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
        column = i % W
        side = inside & (column > 0)[None, :]
        d = v32 - tl.load(at_x - sx_l, mask=side, other=0.0).to(tl.float32)
        signs = tl.where(side, tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0)), 0.0)
        side = inside & (column + 1 < W)[None, :]
        d = v32 - tl.load(at_x + sx_l, mask=side, other=0.0).to(tl.float32)
        signs += tl.where(side, tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0)), 0.0)
        side = inside & (i >= W)[None, :]
        d = v32 - tl.load(at_x - W * sx_l, mask=side, other=0.0).to(tl.float32)
        signs += tl.where(side, tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0)), 0.0)
        side = inside & (i + W < L)[None, :]
        d = v32 - tl.load(at_x + W * sx_l, mask=side, other=0.0).to(tl.float32)
        signs += tl.where(side, tl.where(d > 0, 1.0, tl.where(d < 0, -1.0, 0.0)), 0.0)
        gradient += signs * slope
    if dy is not None:
        factor = tl.load(factors + channel, mask=there, other=0.0)
        gradient += tl.load(at_y, mask=inside, other=0.0).to(tl.float32) * factor[:, None]
    return gradient


@triton.jit
def _normalised(dpooled, image, p, P, PADDED: tl.constexpr):
    """The gradient of an image's pooled projection at p, divided by its largest absolute entry, and that entry."""
    every = tl.arange(0, PADDED)
    largest = tl.max(tl.abs(tl.load(dpooled + image * P + every, mask=every < P, other=0.0)), 0)
    return tl.load(dpooled + image * P + p, mask=p < P, other=0.0) / tl.where(largest > 0, largest, 1.0), largest


@triton.jit
def _attention_base(dpooled, pooled, image, P, PADDED: tl.constexpr):
    """The softmax backward's sum, for the attention: dpooled . pooled."""
    every = image * P + tl.arange(0, PADDED)
    mask = tl.arange(0, PADDED) < P
    return tl.sum(tl.load(dpooled + every, mask=mask, other=0.0) * tl.load(pooled + every, mask=mask, other=0.0), 0)


@triton.jit
def interaction_reduce_bwd_kernel(
    x, weight, bias, mean, dmean, dvariance, denergy, dpooled, dy, factors, dx, dweight, dbias,
    C, P, L, W, chunks, chunk_tiles,
    sx_b, sx_c, sx_l, sy_b, sy_c, sy_l, sd_b, sd_c, sd_l, sw_p, sw_c,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """All gradients of a chunk of an image's pixels, for P <= BP and C <= BC, without attention.

    That is dx, and partial sums over the chunk of those of the parameters, (B, chunks, P, C) and (B, chunks, P).
    """
    row = tl.program_id(0).to(tl.int64)  # image * chunks + chunk
    image, chunk = row // chunks, (row % chunks).to(tl.int32)
    p, c = tl.arange(0, BP), tl.arange(0, BC)
    there = (p < P)[:, None] & (c < C)[None, :]
    w = tl.load(weight + p[:, None] * sw_p + c[None, :] * sw_c, mask=there, other=0.0).to(x.dtype.element_ty)
    b = tl.load(bias + p, mask=p < P, other=0.0).to(tl.float32)
    g, largest = _normalised(dpooled, image, p, P, BP)
    back = tl.trans((w.to(tl.float32) * g[:, None]).to(w.dtype))  # [BC, BP]
    sum_w = tl.zeros([BP, BC], tl.float32)
    sum_b = tl.zeros([BP], tl.float32)
    x += image * sx_b + along(c, sx_c, WIDE)[:, None]
    if dx is not None:
        dx += image * sd_b + along(c, sd_c, WIDE)[:, None]
    if dy is not None:
        dy += image * sy_b + along(c, sy_c, WIDE)[:, None]
    for tile in range(chunk_tiles):
        i = (chunk * chunk_tiles + tile) * BL + tl.arange(0, BL)
        here = i < L
        inside = (c < C)[:, None] & here[None, :]
        at_x = x + along(i, sx_l, WIDE)[None, :]
        v = tl.load(at_x, mask=inside, other=0.0)  # [BC, BL]
        z = tl.dot(w, v, input_precision=PRECISION) + b[:, None]  # [BP, BL]
        m = tl.where(here[None, :], positive(z), 0.0)
        u = tl.dot(back, m.to(v.dtype), input_precision=PRECISION)  # [BC, BL], over L / largest
        sum_w = tl.dot(m.to(v.dtype), tl.trans(v), sum_w, input_precision=PRECISION)
        sum_b += tl.sum(m, 1)
        if dx is not None:
            at_y = None
            if dy is not None:
                at_y = dy + along(i, sy_l, WIDE)[None, :]
            gradient = u * (largest / L) + _map_gradient(
                v.to(tl.float32), at_x, at_y, inside, c, i, image,
                mean, dmean, dvariance, denergy, dy, factors, C, L, W, sx_l,
            )  # fmt: skip
            tl.store(dx + along(i, sd_l, WIDE)[None, :], gradient, mask=inside)
    g *= largest / L
    tl.store(dweight + (row * P + p[:, None]) * C + c[None, :], sum_w * g[:, None], mask=there)
    tl.store(dbias + row * P + p, sum_b * g, mask=p < P)


@triton.jit
def interaction_signs_kernel(
    x, weight, bias, attn, softmax, dpooled, signs, reached, shares,
    C, P, L, tiles,
    sx_b, sx_c, sx_l, sw_p, sw_c,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Writes the signs of the projected map, with `store_signs`.

    With attention, also writes reached (B, blocks of P, L), the product of dpooled and the rectified map, and shares
    (B, L), the exponentials of the logits minus the largest.
    """
    image, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    i = tile * BL + tl.arange(0, BL)
    here = i < L
    x += image * sx_b
    pixels = along(i, sx_l, WIDE)
    z = tl.zeros([BP, BL], tl.float32)
    logits = tl.zeros([BL], tl.float32)
    for k in range(0, C, BK):
        c = k + tl.arange(0, BK)
        inside = (c < C)[:, None] & here[None, :]
        v = tl.load(x + along(c, sx_c, WIDE)[:, None] + pixels[None, :], mask=inside, other=0.0)  # [BK, BL]
        there = (p < P)[:, None] & (c < C)[None, :]
        w = tl.load(weight + p[:, None] * sw_p + c[None, :] * sw_c, mask=there, other=0.0).to(v.dtype)
        z = tl.dot(w, v, z, input_precision=PRECISION)
        if attn is not None:
            a = tl.load(attn + c, mask=c < C, other=0.0).to(tl.float32)
            logits += tl.sum(a[:, None] * v.to(tl.float32), 0)
    z += tl.load(bias + p, mask=p < P, other=0.0).to(tl.float32)[:, None]
    store_signs(signs, z, image, tl.program_id(1) * BP, i, P, L, BP, BL)
    if attn is not None:
        g = tl.load(dpooled + image * P + p, mask=p < P, other=0.0)
        part = tl.sum(tl.where((p < P)[:, None], rectified(z) * g[:, None], 0.0), 0)
        tl.store(reached + (image * tl.num_programs(1) + tl.program_id(1)) * L + i, part, mask=here)
        if tl.program_id(1) == 0:
            tl.store(shares + image * L + i, tl.exp(logits - tl.load(softmax + image * 2)), mask=here)


@triton.jit
def _dlogit(reached, shares, image, i, L, blocks, base, whole):
    """The gradient of the attention's logits at pixels i, and their shares before division by the sum."""
    here = i < L
    e = tl.load(shares + image * L + i, mask=here, other=0.0)
    total = tl.zeros(i.shape, tl.float32)
    for j in range(blocks):
        total += tl.load(reached + (image * blocks + j) * L + i, mask=here, other=0.0)
    return tl.where(here, e / whole * (total - base), 0.0), e


@triton.jit
def interaction_map_bwd_kernel(
    x, weight, attn, mean, pooled, softmax, dmean, dvariance, denergy, dpooled, dy, factors, signs, reached, shares, dx,
    C, P, L, W, tiles, blocks,
    sx_b, sx_c, sx_l, sy_b, sy_c, sy_l, sd_b, sd_c, sd_l, sw_p, sw_c,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, PADDED: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """The gradient of the map; the part through the projection uses its signs."""
    image, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    i = tile * BL + tl.arange(0, BL)
    here = i < L
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
            m = load_signs(signs, image, first, i, P, L, BP, BL)
            u = tl.dot(back, m.to(w.dtype), u, input_precision=PRECISION)
        if attn is not None:
            a = tl.load(attn + c, mask=c < C, other=0.0).to(tl.float32)
            whole = tl.load(softmax + image * 2 + 1)
            base = _attention_base(dpooled, pooled, image, P, PADDED)
            dlogit, e = _dlogit(reached, shares, image, i, L, blocks, base, whole)
            u = u * (e * (largest / whole))[None, :] + a[:, None] * dlogit[None, :]
        else:
            u *= largest / L
    at_x = x + image * sx_b + along(c, sx_c, WIDE)[:, None] + along(i, sx_l, WIDE)[None, :]
    v32 = tl.load(at_x, mask=inside, other=0.0).to(tl.float32)
    at_y = None
    if dy is not None:
        at_y = dy + image * sy_b + along(c, sy_c, WIDE)[:, None] + along(i, sy_l, WIDE)[None, :]
    u += _map_gradient(
        v32, at_x, at_y, inside, c, i, image, mean, dmean, dvariance, denergy, dy, factors, C, L, W, sx_l
    )
    at = image * sd_b + along(c, sd_c, WIDE)[:, None] + along(i, sd_l, WIDE)[None, :]
    tl.store(dx + at, u, mask=inside)


@triton.jit
def interaction_weight_bwd_kernel(
    x, attn, pooled, softmax, dpooled, signs, reached, shares, dweight, dbias, dattn,
    C, P, L, tiles, items, share_items, blocks,
    sx_b, sx_c, sx_l,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, PADDED: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Partial sums of the gradients of the parameters over a share of the items, which are tiles of images.

    They are (parts, P, C), (parts, P) and (parts, C).
    """
    part = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BP
    p = first + tl.arange(0, BP)
    c = tl.program_id(2) * BC + tl.arange(0, BC)
    channels = along(c, sx_c, WIDE)
    sum_w = tl.zeros([BP, BC], tl.float32)
    sum_b = tl.zeros([BP], tl.float32)
    sum_a = tl.zeros([BC], tl.float32)
    start = tl.program_id(0) * share_items
    for item in range(start, tl.minimum(start + share_items, items)):
        image, tile = (item // tiles).to(tl.int64), item % tiles
        i = tile * BL + tl.arange(0, BL)
        here = i < L
        inside = (c < C)[:, None] & here[None, :]
        v = tl.load(x + image * sx_b + channels[:, None] + along(i, sx_l, WIDE)[None, :], mask=inside, other=0.0)
        m = tl.where(here[None, :], load_signs(signs, image, first, i, P, L, BP, BL), 0.0)
        g, largest = _normalised(dpooled, image, p, P, PADDED)
        if attn is not None:
            whole = tl.load(softmax + image * 2 + 1)
            base = _attention_base(dpooled, pooled, image, P, PADDED)
            dlogit, e = _dlogit(reached, shares, image, i, L, blocks, base, whole)
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
    if attn is not None:  # noqa: SIM102 - a compile-time condition, unlike the next
        if tl.program_id(1) == 0:
            tl.store(dattn + part * C + c, sum_a, mask=c < C)


# --- launch -----------------------------------------------------------------------------------------------------------


def is_small(x: Tensor, weight: Tensor, attn: Tensor | None) -> bool:
    """Whether the backward pass fits in the registers of one kernel."""
    return attn is None and max(weight.shape) <= 64 and x.dtype != torch.float32


def small_backward(x, weight, bias, sums, dy, factors, dx) -> tuple[Tensor | None, ...]:
    """Partial sums of the gradients of the parameters; writes dx."""
    (B, C, H, W), P = x.shape, weight.shape[0]
    BP, BC, BL = block_of(P, 64), block_of(C, 64), 32
    tiles = triton.cdiv(H * W, BL)
    chunk_tiles = triton.cdiv(tiles, max(1, min(tiles, processors(x) // B)))
    chunks = triton.cdiv(tiles, chunk_tiles)

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    parts = new(B * chunks, P, C), new(B * chunks, P)
    mean, _, _, *gradients = sums
    rows, dy_rows, dx_rows = (None if t is None else pixel_rows(t) for t in (x, dy, dx))
    interaction_reduce_bwd_kernel[(B * chunks,)](
        rows, weight, bias, mean, *gradients, dy_rows, factors, dx_rows, *parts,
        C, P, H * W, W, chunks, chunk_tiles,
        *strides_of(rows), *strides_of(dy_rows), *strides_of(dx_rows), *weight.stride(),
        WIDE=is_wide(x, dy, dx), PRECISION=precision_of(x), BP=BP, BC=BC, BL=BL, num_warps=8, num_stages=2,
    )  # fmt: skip
    return *parts, None


def find_signs(x, weight, bias, attn, softmax, dpooled) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns the signs of the projected map and, with attention, `reached` and the shares of the pixels."""
    B, C, L, P = *x.shape[:2], x.shape[2] * x.shape[3], weight.shape[0]
    BP, BL = block_of(P, 128), 64
    blocks = triton.cdiv(P, BP)
    signs = new_signs(x, P)
    reached = shares = None
    if attn is not None:
        reached = torch.empty(B, blocks, L, dtype=torch.float32, device=x.device)
        shares = torch.empty(B, L, dtype=torch.float32, device=x.device)
    rows, tiles = pixel_rows(x), triton.cdiv(L, BL)
    interaction_signs_kernel[(B * tiles, blocks)](
        rows, weight, bias, attn, softmax, dpooled, signs, reached, shares,
        C, P, L, tiles,
        *rows.stride(), *weight.stride(),
        WIDE=is_wide(x), PRECISION=precision_of(x), BP=BP, BK=32, BL=BL, num_warps=8 if BP > 64 else 4,
    )  # fmt: skip
    return signs, reached, shares


def map_backward(x, weight, attn, sums, dy, factors, found, dx) -> None:
    """Writes dx; `found` is the result of `find_signs`."""
    B, C, L, W = *x.shape[:2], x.shape[2] * x.shape[3], x.shape[3]
    P = 0 if weight is None else weight.shape[0]
    narrow = x.dtype == torch.float32  # limited by registers
    BC, BL = block_of(C, 32 if narrow else 64), 64
    rows, dy_rows, dx_rows = (None if t is None else pixel_rows(t) for t in (x, dy, dx))
    tiles = triton.cdiv(L, BL)
    interaction_map_bwd_kernel[(B * tiles, triton.cdiv(C, BC))](
        rows, weight, attn, *sums, dy_rows, factors, *found, dx_rows,
        C, P, L, W, tiles, triton.cdiv(P, block_of(P, 128)) if P else 0,
        *strides_of(rows), *strides_of(dy_rows), *strides_of(dx_rows), *((0, 0) if weight is None else weight.stride()),
        WIDE=is_wide(x, dy, dx), PRECISION=precision_of(x), PADDED=power_of_two(max(P, 1)),
        BP=block_of(P, 32 if narrow else 64), BC=BC, BL=BL, num_warps=4 if narrow else 8,
    )  # fmt: skip


def weight_backward(x, weight, attn, sums, found) -> tuple[Tensor | None, ...]:
    """Partial sums of the gradients of the parameters; `found` is the result of `find_signs`."""
    B, C, L, P = *x.shape[:2], x.shape[2] * x.shape[3], weight.shape[0]
    narrow = x.dtype == torch.float32
    BP = block_of(P, 128 if narrow else 64)
    # In float32 as in `reduce_forward`: small steps to save registers, many stages to keep enough bytes in flight.
    BC, BL, stages = block_of(C, 32 if narrow and BP > 32 else 64), *((32, 5) if narrow else (64, 3))
    tiles = triton.cdiv(L, BL)
    blocks = triton.cdiv(P, BP), triton.cdiv(C, BC)
    share_items = triton.cdiv(B * tiles, max(1, min(B * tiles, FULL * processors(x) // (blocks[0] * blocks[1]))))
    count = triton.cdiv(B * tiles, share_items)

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    parts = new(count, P, C), new(count, P), None if attn is None else new(count, C)
    _, pooled, softmax, *_, dpooled = sums
    rows = pixel_rows(x)
    interaction_weight_bwd_kernel[(count, *blocks)](
        rows, attn, pooled, softmax, dpooled, *found, *parts,
        C, P, L, tiles, B * tiles, share_items, triton.cdiv(P, block_of(P, 128)),
        *rows.stride(),
        WIDE=is_wide(x), PRECISION=precision_of(x), PADDED=power_of_two(P),
        BP=BP, BC=BC, BL=BL, num_warps=8, num_stages=stages_of(stages),
    )  # fmt: skip
    return parts
