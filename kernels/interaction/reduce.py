"""The reducing pass of task interaction in Triton: forward kernels, and launchers for forward and backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtlkit.kernels._launch import check_dtypes, on_device, processors
from mtlkit.kernels.interaction._maps import (
    along,
    block_of,
    finite_or_zero,
    is_wide,
    new_map,
    new_signs,
    pixel_rows,
    precision_of,
    rectified,
    stages_of,
    store_signs,
)
from mtlkit.kernels.interaction._reduce_bwd import find_signs, is_small, map_backward, small_backward, weight_backward

# --- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit
def interaction_reduce_fwd_kernel(
    x, weight, bias, attn, means, squares, energies, sums, tops, signs,
    C, P, L, W, tiles,
    sx_b, sx_c, sx_l, sw_p, sw_c,
    WIDE: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """The sums of a tile of pixels.

    Means and squares (B, tiles, C) about the first pixel, energies (B, tiles), sums (B, tiles, P) of the projected map,
    with attention tops (B, tiles, 2), the largest logit and the sum of exponentials, and optionally the map's signs.
    """
    row = tl.program_id(0).to(tl.int64)  # image * tiles + tile
    image, tile = row // tiles, (row % tiles).to(tl.int32)
    lead = tl.program_id(1) == 0
    p = tl.program_id(1) * BP + tl.arange(0, BP)
    i = tile * BL + tl.arange(0, BL)
    here = i < L
    count = tl.minimum(BL, L - tile * BL).to(tl.float32)
    x += image * sx_b
    pixels = along(i, sx_l, WIDE)
    z = tl.zeros([BP, BL], tl.float32)
    logits = tl.zeros([BL], tl.float32)
    energy = tl.zeros([BL], tl.float32)
    for k in range(0, C, BK):
        c = k + tl.arange(0, BK)
        channels = along(c, sx_c, WIDE)
        inside = (c < C)[:, None] & here[None, :]
        at = x + channels[:, None] + pixels[None, :]
        v = tl.load(at, mask=inside, other=0.0)  # [BK, BL]
        v32 = v.to(tl.float32)
        if lead:
            shift = finite_or_zero(tl.load(x + channels, mask=c < C, other=0.0).to(tl.float32))
            d = tl.where(here[None, :], v32 - shift[:, None], 0.0)
            mean = tl.sum(d, 1) / count
            d = tl.where(here[None, :], d - mean[:, None], 0.0)
            tl.store(means + row * C + c, mean, mask=c < C)
            tl.store(squares + row * C + c, tl.sum(d * d, 1), mask=c < C)
            if energies is not None:
                right = inside & (i % W + 1 < W)[None, :]
                down = inside & (i + W < L)[None, :]
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
        tl.store(energies + row, tl.sum(energy, 0), mask=lead)
    if weight is not None:
        z += tl.load(bias + p, mask=p < P, other=0.0).to(tl.float32)[:, None]
        if signs is not None:
            store_signs(signs, z, image, tl.program_id(1) * BP, i, P, L, BP, BL)
        z = rectified(z)
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
    shift = tl.load(x + image * sx_b + along(c, sx_c, WIDE), mask=inside, other=0.0).to(tl.float32)
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
    tl.store(mean + image * C + c, finite_or_zero(shift) + about, mask=inside)
    tl.store(variance + image * C + c, square / L, mask=inside)

    if energies is not None:
        total = tl.zeros([BT], tl.float32)
        for start in range(0, tiles, BT):
            t = start + tl.arange(0, BT)
            total += tl.load(energies + first + t, mask=t < tiles, other=0.0)
        tl.store(energy + image, tl.sum(total, 0) / (C.to(tl.float32) * L), mask=tl.program_id(1) == 0)

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


# --- launch -----------------------------------------------------------------------------------------------------------

COMBINED_TILES, COMBINED_CHANNELS = 64, 32


def pixels_of(x: Tensor) -> int:
    """Pixels per tile of all channels; fewer if there would be fewer tiles than processors.

    Each tile reads the complete projection, so even smaller tiles would not gain anything.
    """
    return 64 if x.shape[0] * triton.cdiv(x.shape[2] * x.shape[3], 64) >= processors(x) else 32


def room_for_signs(x: Tensor, weight: Tensor | None, attn: Tensor | None, save: bool) -> Tensor:
    """A buffer for the signs that `reduce_forward` saves; empty if it saves none."""
    keep = save and weight is not None and attn is None and not is_small(x, weight, attn)
    return new_signs(x, weight.shape[0] if keep else 0)


def reduce_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, attn: Tensor | None, energy: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns mean and variance (B, C), energy (B,), pooled projection (B, P), and two tensors for the backward pass.

    The latter are the softmax's largest logit and sum (B, 2) and, if `save` and the backward pass uses them, the signs
    of the projected map, (B, ceil(P / 32), L) in int32. All others are float32; unwanted results are empty. The
    arguments are those of `mtlkit.ops.interaction`: map (B, C, H, W), weight (P, C), bias (P,), attn (C,); the caller
    checks them.

    Raises:
        TypeError: the dtype of an input is not float32, bfloat16 or float16.
    """
    check_dtypes("task_interaction", x, weight, bias, attn)
    B, C, H, W = x.shape
    P = 0 if weight is None else weight.shape[0]

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    mean, variance, energies = new(B, C), new(B, C), new(B * energy)
    pooled, softmax = new(B, P), new(B, 2 * (attn is not None))
    signs = room_for_signs(x, weight, attn, save)
    if B == 0:
        return mean, variance, energies, pooled, softmax, signs
    rows, L = pixel_rows(x), H * W
    BP, BL = block_of(P, 256), pixels_of(x)
    # Products in three parts take registers: short steps leave room for a second program per processor, and more stages
    # keep as many bytes in flight.
    BK, stages = (16, 5) if BP > 32 and x.dtype == torch.float32 else (32, 3)
    tiles = triton.cdiv(L, BL)
    parts = {
        "means": new(B, tiles, C),
        "squares": new(B, tiles, C),
        "energies": new(B, tiles) if energy else None,
        "sums": new(B, tiles, P) if P else None,
        "tops": new(B, tiles, 2) if attn is not None else None,
    }
    wide = is_wide(x)
    vectors = (None if t is None else t.contiguous() for t in (bias, attn))
    with on_device(x):
        interaction_reduce_fwd_kernel[(B * tiles, max(1, triton.cdiv(P, BP)))](
            rows, weight, *vectors, *parts.values(), signs if signs.numel() > 0 else None,
            C, P, L, W, tiles,
            *rows.stride(), *((0, 0) if weight is None else weight.stride()),
            WIDE=wide, PRECISION=precision_of(x), BP=BP, BK=BK, BL=BL,
            num_warps=8 if BP > 32 else 4, num_stages=stages_of(stages),
        )  # fmt: skip
        interaction_combine_kernel[(B, triton.cdiv(max(C, P), COMBINED_CHANNELS))](
            rows, *parts.values(), mean, variance, energies, pooled, softmax,
            C, P, L, tiles, BL,
            *rows.stride()[:2],
            WIDE=wide, BT=COMBINED_TILES, BC=COMBINED_CHANNELS,
        )  # fmt: skip
    return mean, variance, energies, pooled, softmax, signs


def reduce_backward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    attn: Tensor | None,
    mean: Tensor,
    pooled: Tensor,
    softmax: Tensor,
    signs: Tensor,
    dmean: Tensor | None,
    dvariance: Tensor | None,
    denergy: Tensor | None,
    dpooled: Tensor | None,
    dy: Tensor | None = None,
    factors: Tensor | None = None,
    map_wanted: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Returns the gradients of x, in its dtype and memory format, and of weight, bias and attn in float32.

    mean, pooled, softmax and signs are results of `reduce_forward`; the gradients of the sums are float32, None for
    zeros. If dy is given, dy times the factors is added to the gradient of x, which is None unless `map_wanted`. The
    gradients of the parameters are None without dpooled, since they depend only on it.

    Raises:
        TypeError: the dtype of an input is not float32, bfloat16 or float16.
    """
    check_dtypes("task_interaction", x, weight, bias, attn, dy)
    if x.shape[0] == 0:
        parameters = (
            None if t is None or dpooled is None else torch.zeros_like(t, dtype=torch.float32)
            for t in (weight, bias, attn)
        )
        return torch.zeros_like(x) if map_wanted else None, *parameters
    gradients = (dmean, dvariance, denergy, dpooled)
    dmean, dvariance, denergy, dpooled = (None if g is None else g.contiguous() for g in gradients)
    factors = None if dy is None else factors.contiguous()
    bias, attn = (None if t is None else t.contiguous() for t in (bias, attn))
    sums = (mean, pooled, softmax, dmean, dvariance, denergy, dpooled)
    dx = new_map(x) if map_wanted else None
    with on_device(x):
        if dpooled is None:
            if dx is not None:
                map_backward(x, weight, attn, sums, dy, factors, (None, None, None), dx)
            return dx, None, None, None
        if is_small(x, weight, attn):
            parts = small_backward(x, weight, bias, sums, dy, factors, dx)
        else:
            found = (signs, None, None)
            if signs.numel() == 0:
                found = find_signs(x, weight, bias, attn, softmax, dpooled)
            if dx is not None:
                map_backward(x, weight, attn, sums, dy, factors, found, dx)
            parts = weight_backward(x, weight, attn, sums, found)
    return dx, *(None if part is None else part.sum(0) for part in parts)
