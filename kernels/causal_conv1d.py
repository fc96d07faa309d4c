r"""causal_conv1d in Triton, forward and backward: formula and letters as in mtlkit/operators/causal_conv1d.

A program owns a tile of BL tokens, numbered consecutively over all sequences, times BD channels; the w tokens that an
output depends on are read repeatedly, from the caches. Taps are counted back from the token: tap k reads token t - k.
With da = dy SiLU'(a), and only if no sequence begins between the two tokens:

    dbias = sum da     dweight[w - 1 - k] = sum da[t] x[t - k]     dx[t] = sum_k weight[w - 1 - k] da[t + k]

Backward recomputes a and writes da as a float32 map and one partial sum per program of dweight and dbias, which are
added in a fixed order. A second kernel computes dx from da, and also the gradient of the initial states, which are the
tokens before the first.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtlkit.kernels._launch import check_dtypes, on_device, processors
from mtlkit.kernels._scan import sigmoid
from mtlkit.kernels.tables import pixel_tiles


@triton.jit
def _token_before(
    x, initial, sequence, t, d, inside, k, L, s_b, s_d, s_l, si_b, si_d, si_l, W: tl.constexpr
):  # fmt: skip
    """Token t - k, [BL, BD]: of x, of the initial states, or 0."""
    at = t - k
    px = x + (sequence * s_b + at * s_l)[:, None] + d[None] * s_d
    value = tl.load(px, mask=inside & (at >= 0)[:, None], other=0.0).to(tl.float32)
    if initial is not None:
        pi = initial + (sequence * si_b + (at + W - 1) * si_l)[:, None] + d[None] * si_d
        value += tl.load(pi, mask=inside & (at < 0)[:, None], other=0.0).to(tl.float32)
    return value


@triton.jit
def _reaches(reached, seq_idx, sequence, t, there, k, L):
    """Whether the outputs at t depend on token t - k; `reached` says whether they depend on token t - k + 1."""
    if seq_idx is not None:
        at = seq_idx + sequence * L + t - k
        both = there & (t - k >= 0)
        reached = reached & both & (tl.load(at, mask=both, other=0) == tl.load(at + 1, mask=both, other=0))
    return reached


@triton.jit
def _is_token(seq_idx, sequence, t, there, L):
    """Whether the tokens exist and are not padding, [BL]."""
    token = there
    if seq_idx is not None:
        token = there & (tl.load(seq_idx + sequence * L + t, mask=there, other=0) >= 0)
    return token


@triton.jit
def _tap(weight, d, there, k, W: tl.constexpr):
    return tl.load(weight + d * W + (W - 1 - k), mask=there, other=0.0).to(tl.float32)[None]


@triton.jit
def _convolved(
    x, weight, bias, seq_idx, initial, sequence, t, d, there, inside, L, s_b, s_d, s_l, si_b, si_d, si_l,
    BL: tl.constexpr, BD: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """The sum a, [BL, BD]; `there`: whether tokens exist, `inside`: whether tokens and channels exist."""
    a = tl.zeros([BL, BD], tl.float32)
    channel = tl.max(inside.to(tl.int32), 0) > 0
    if bias is not None:
        a += tl.load(bias + d, mask=channel, other=0.0).to(tl.float32)[None]
    reached = there
    for k in tl.static_range(W):
        if k > 0:
            reached = _reaches(reached, seq_idx, sequence, t, there, k, L)
        value = _token_before(
            x, initial, sequence, t, d, inside & reached[:, None], k, L, s_b, s_d, s_l, si_b, si_d, si_l, W
        )
        a += tl.where(reached[:, None], _tap(weight, d, channel, k, W) * value, 0.0)
    return a


@triton.jit
def causal_conv1d_fwd_kernel(
    x, weight, bias, seq_idx, initial, y, tokens, D, L, s_b, s_d, s_l, si_b, si_d, si_l, sy_b, sy_d, sy_l,
    SILU: tl.constexpr, W: tl.constexpr, BL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The output."""
    blocks = tl.cdiv(D, BD)
    d = (tl.program_id(0) % blocks * BD + tl.arange(0, BD)).to(tl.int64)
    token = (tl.program_id(0) // blocks).to(tl.int64) * BL + tl.arange(0, BL)
    there = token < tokens
    inside = there[:, None] & (d < D)[None]
    sequence, t = token // L, token % L
    a = _convolved(
        x, weight, bias, seq_idx, initial, sequence, t, d, there, inside, L, s_b, s_d, s_l, si_b, si_d, si_l, BL, BD, W
    )
    if SILU:
        a *= sigmoid(a)
    a = tl.where(_is_token(seq_idx, sequence, t, there, L)[:, None], a, 0.0)
    tl.store(y + (sequence * sy_b + t * sy_l)[:, None] + d[None] * sy_d, a.to(y.dtype.element_ty), mask=inside)


@triton.jit
def causal_conv1d_bwd_kernel(
    dy, x, weight, bias, seq_idx, initial, da, partial, tokens, run, D, L,
    sg_b, sg_d, sg_l, s_b, s_d, s_l, si_b, si_d, si_l,
    SILU: tl.constexpr, W: tl.constexpr, BL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes da (B, L, D), and partial sums of the taps and the bias over `run` tokens each: (runs, W + 1, D)."""
    blocks = tl.cdiv(D, BD)
    d = (tl.program_id(0) % blocks * BD + tl.arange(0, BD)).to(tl.int64)
    part = (tl.program_id(0) // blocks).to(tl.int64)
    s0, s1, s2 = tl.zeros([BL, BD], tl.float32), tl.zeros([BL, BD], tl.float32), tl.zeros([BL, BD], tl.float32)
    s3, total = tl.zeros([BL, BD], tl.float32), tl.zeros([BL, BD], tl.float32)
    for start in range(0, run, BL):
        token = part * run + start + tl.arange(0, BL)
        there = token < tokens
        inside = there[:, None] & (d < D)[None]
        sequence, t = token // L, token % L
        g = tl.load(dy + (sequence * sg_b + t * sg_l)[:, None] + d[None] * sg_d, mask=inside, other=0.0).to(tl.float32)
        if SILU:
            a = _convolved(
                x, weight, bias, seq_idx, initial, sequence, t, d, there, inside, L,
                s_b, s_d, s_l, si_b, si_d, si_l, BL, BD, W,
            )  # fmt: skip
            opened = sigmoid(a)
            g *= opened * (1.0 + a * (1.0 - opened))
        g = tl.where(_is_token(seq_idx, sequence, t, there, L)[:, None], g, 0.0)
        reached = there
        for k in tl.static_range(W):
            if k > 0:
                reached = _reaches(reached, seq_idx, sequence, t, there, k, L)
            value = _token_before(
                x, initial, sequence, t, d, inside & reached[:, None], k, L, s_b, s_d, s_l, si_b, si_d, si_l, W
            )
            product = tl.where(inside & reached[:, None], g * value, 0.0)
            if k == 0:
                s0 += product
            elif k == 1:
                s1 += product
            elif k == 2:
                s2 += product
            else:
                s3 += product
        total += tl.where(inside, g, 0.0)
        tl.store(da + token[:, None] * D + d[None], g, mask=inside)
    at = partial + part * (W + 1) * D + d
    tl.store(at + (W - 1) * D, tl.sum(s0, 0), mask=d < D)
    tl.store(at + (W - 2) * D, tl.sum(s1, 0), mask=d < D)
    if W > 2:
        tl.store(at + (W - 3) * D, tl.sum(s2, 0), mask=d < D)
    if W > 3:
        tl.store(at + (W - 4) * D, tl.sum(s3, 0), mask=d < D)
    tl.store(at + W * D, tl.sum(total, 0), mask=d < D)


@triton.jit
def causal_conv1d_dx_kernel(
    da, weight, seq_idx, dx, dinitial, places, D, L, sx_b, sx_d, sx_l,
    W: tl.constexpr, BL: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes dx and, if given, dinitial (B, D, W - 1); the positions of a sequence then begin with these tokens."""
    blocks = tl.cdiv(D, BD)
    d = (tl.program_id(0) % blocks * BD + tl.arange(0, BD)).to(tl.int64)
    place = (tl.program_id(0) // blocks).to(tl.int64) * BL + tl.arange(0, BL)
    BEFORE: tl.constexpr = 0 if dinitial is None else W - 1
    sequence, t = place // (L + BEFORE), place % (L + BEFORE) - BEFORE
    there = place < places
    channel = d < D
    gradient = tl.zeros([BL, BD], tl.float32)
    reached = there
    for k in tl.static_range(W):
        after = there & (t + k >= 0) & (t + k < L)
        if k > 0 and seq_idx is not None:  # there are no initial states then
            at = seq_idx + sequence * L + t + k
            before = tl.load(at - 1, mask=after, other=0)
            reached = reached & after & (tl.load(at, mask=after, other=0) == before)
        mask = (reached & after)[:, None] & channel[None]
        value = tl.load(da + (sequence * L + t + k)[:, None] * D + d[None], mask=mask, other=0.0)
        gradient += tl.where(mask, _tap(weight, d, channel, k, W) * value, 0.0)
    inside = there[:, None] & channel[None]
    pdx = dx + (sequence * sx_b + t * sx_l)[:, None] + d[None] * sx_d
    tl.store(pdx, gradient.to(dx.dtype.element_ty), mask=inside & (t >= 0)[:, None])
    if dinitial is not None:
        pdi = dinitial + ((sequence * D)[:, None] + d[None]) * (W - 1) + (t + W - 1)[:, None]
        tl.store(pdi, gradient, mask=inside & (t < 0)[:, None])


# --- launch -----------------------------------------------------------------------------------------------------------


def _dense(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _strides(tensor: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if tensor is None else tensor.stride()


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
    y: Tensor,
) -> None:
    """Writes y. The arguments are those of `mtlkit.ops.causal_conv1d`, which checks them; seq_idx is int32 and dense.

    Raises:
        TypeError: the dtype of an input is not float32, bfloat16 or float16.
    """
    check_dtypes("causal_conv1d", x, weight, bias, initial_states)
    batch, channels, length = x.shape
    BL, BD, num_warps = pixel_tiles(channels)
    with on_device(x):
        causal_conv1d_fwd_kernel[(triton.cdiv(batch * length, BL) * triton.cdiv(channels, BD),)](
            x, weight.contiguous(), _dense(bias), seq_idx, initial_states, y, batch * length, channels, length,
            *x.stride(), *_strides(initial_states), *y.stride(),
            SILU=silu, W=weight.shape[1], BL=BL, BD=BD, num_warps=num_warps, enable_fp_fusion=True,
        )  # fmt: skip


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
    dx: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Writes dx; returns the gradients of weight, bias and initial states in float32, None for arguments that are None.

    Raises:
        TypeError: the dtype of an input is not float32, bfloat16 or float16.
    """
    check_dtypes("causal_conv1d", dy, x, weight, bias, initial_states)
    (batch, channels, length), width = x.shape, weight.shape[1]
    BL, BD, num_warps = pixel_tiles(channels)
    tokens, blocks = batch * length, triton.cdiv(channels, BD)
    run = triton.cdiv(triton.cdiv(tokens * blocks, 4 * processors(x)), BL) * BL
    parts = triton.cdiv(tokens, run)

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    da, partial = new(batch, length, channels), new(parts, width + 1, channels)
    dinitial = None if initial_states is None else new(*initial_states.shape)
    places = batch * (length + (0 if dinitial is None else width - 1))
    options = {"W": width, "BL": BL, "BD": BD, "num_warps": num_warps, "enable_fp_fusion": True}
    with on_device(x):
        dense = weight.contiguous()
        causal_conv1d_bwd_kernel[(parts * blocks,)](
            dy, x, dense, _dense(bias), seq_idx, initial_states, da, partial, tokens, run, channels, length,
            *dy.stride(), *x.stride(), *_strides(initial_states), SILU=silu, **options,
        )  # fmt: skip
        causal_conv1d_dx_kernel[(triton.cdiv(places, BL) * blocks,)](
            da, dense, seq_idx, dx, dinitial, places, channels, length, *dx.stride(), **options
        )
        dweight = partial[:, :width].sum(0).t()  # (D, w)
        dbias = (
            None if bias is None else partial[:, width].sum(0)
        )  # separate memory, as results of an operator must not share it
    return dweight, dbias, dinitial
