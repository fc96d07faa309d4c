r"""The 1-D selective scan in Triton, forward and backward: formula and letters as in mtlkit/operators/selective_scan.

A program owns a block of channels of one sequence and one group, or of a chunk of its tokens. Splits, saved states,
partial sums and their fixed orders are as in ss2d.py. The directions of mtlkit/operators/directional_scan are groups of
channels here, each with its own row of an `Order`.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtlkit.kernels._launch import check_dtypes, is_wide, like, on_device, processors
from mtlkit.kernels._scan import (
    CHAIN_BLOCK,
    INTERVAL,
    LN_2,
    add_up,
    along,
    chain_kernel,
    decay_rate,
    put,
    settled,
    sigmoid,
    softplus_slope,
    take,
)
from mtlkit.kernels._selective_scan_tiles import (
    begins,
    cut,
    matrix,
    off_channels,
    off_lanes,
    per_channel,
    place,
    share,
    states,
    time_steps,
    visited,
)
from mtlkit.kernels.tables import STATE_INTERVAL, chunking, scan_tiles

# --- only the states, for split scans ---------------------------------------------------------------------------------


@triton.jit
def selective_scan_states_kernel(
    v, delta, A, m, z, delta_bias, table, seq_idx, ends, steps,
    D, groups, L, tokens, chunks, chunk_blocks,
    sv_b, sv_g, sv_d, sv_l, st_b, st_g, st_d, st_l, sm_b, sm_g, sm_n, sm_l, sz_b, sz_g, sz_d, sz_l, so_b,
    N: tl.constexpr, VARIES: tl.constexpr, SOFTPLUS: tl.constexpr, ADJOINT: tl.constexpr, WIDE: tl.constexpr,
    T: tl.constexpr, S: tl.constexpr, G: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A chunk's last state from a zero start, and the sum of its time steps; -1 if a sequence begins in it.

    The state is h, with v = u and m = B; if ADJOINT, the gradient that passes from a chunk to the previous one, with
    v = dout and m = C.
    """
    RESETS: tl.constexpr = seq_idx is not None
    _block, group, chunk, sequence, lane, there, d = share(D, groups, chunks, BC, BD)
    n5, d5, there5 = states(d, there, N, S, G)
    a = settled(decay_rate(tl.load(A + d5 * N + n5, mask=there5, other=0.0).to(tl.float32)))
    bias = per_channel(delta_bias, d, there)
    wide, of = lane.to(tl.int64)[None], group.to(tl.int64)
    if table is not None:
        table += sequence * so_b + of * L
    if RESETS:
        seq_idx += sequence * tokens
    first = chunk * chunk_blocks
    count = tl.minimum(chunk_blocks, tl.cdiv(L, T) - first)
    h = tl.zeros([S, BC, G, BD], tl.float32)
    total = tl.zeros([T, BC, BD], tl.float32)
    resets = tl.zeros([T, 1, BC, G, BD], tl.float32)
    for j in range(count):
        position = (first + (count - 1 - j if ADJOINT else j)) * T + tl.arange(0, T)
        inside = position < L
        token = visited(table, position, inside)
        new = begins(seq_idx, table, position, token, inside, BC, G, BD)
        mask = inside[:, None, None] & there[None]
        pv = v + sequence * sv_b + of * sv_g + wide * sv_d + along(token, sv_l, WIDE)[:, None, None]
        pt = delta + sequence * st_b + of * st_g + wide * st_d + along(token, st_l, WIDE)[:, None, None]
        driven = tl.load(pv, mask=mask, other=0.0).to(tl.float32)
        _, dt = time_steps(tl.load(pt, mask=mask, other=0.0), bias, inside, SOFTPLUS)
        total += dt
        if RESETS:
            resets = tl.maximum(resets, new)
        if ADJOINT:
            if z is not None:
                pz = z + sequence * sz_b + of * sz_g + wide * sz_d + along(token, sz_l, WIDE)[:, None, None]
                gate = tl.load(pz, mask=mask, other=0.0).to(tl.float32)
                driven *= gate * sigmoid(gate)
        else:
            driven *= dt
        m5 = matrix(m, sequence, group, token, inside, d5, n5, there5, sm_b, sm_g, sm_n, sm_l, VARIES, N, WIDE)
        decay = tl.exp2(dt[:, None, :, None, :] * a[None])  # [T, S, BC, G, BD]
        fed = driven[:, None, :, None, :] * m5
        for i in tl.static_range(T):
            if ADJOINT:
                h = cut(take(decay, T - 1 - i) * (h + take(fed, T - 1 - i)), new, T - 1 - i, RESETS)
            else:
                h = take(decay, i) * cut(h, new, i, RESETS) + take(fed, i)
    slot = sequence * chunks + chunk
    tl.store(ends + (slot * N + n5) * D + d5, h, mask=there5)
    whole = tl.sum(total, 0)
    if RESETS:
        whole = tl.where(tl.max(tl.max(tl.max(resets, 3), 1), 0) > 0.0, -1.0, whole)
    tl.store(steps + slot * D + d, whole, mask=there)


# --- forward ----------------------------------------------------------------------------------------------------------


@triton.jit
def selective_scan_fwd_kernel(
    u, delta, A, B, C, Dskip, z, delta_bias, table, seq_idx, initial, out, last_state, starts, checkpoints,
    D, groups, L, tokens, chunks, chunk_blocks,
    su_b, su_g, su_d, su_l, st_b, st_g, st_d, st_l, sB_b, sB_g, sB_n, sB_l, sC_b, sC_g, sC_n, sC_l,
    sz_b, sz_g, sz_d, sz_l, so_b, sy_b, sy_g, sy_d, sy_l,
    N: tl.constexpr, B_VARIES: tl.constexpr, C_VARIES: tl.constexpr, SOFTPLUS: tl.constexpr, SAVE: tl.constexpr,
    WIDE: tl.constexpr,
    T: tl.constexpr, S: tl.constexpr, G: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes out, and the last state, unless `chain_kernel` writes it for split scans."""
    RESETS: tl.constexpr = seq_idx is not None
    _block, group, chunk, sequence, lane, there, d = share(D, groups, chunks, BC, BD)
    n5, d5, there5 = states(d, there, N, S, G)
    a = settled(decay_rate(tl.load(A + d5 * N + n5, mask=there5, other=0.0).to(tl.float32)))
    bias = per_channel(delta_bias, d, there)
    skip = per_channel(Dskip, d, there)
    wide, of = lane.to(tl.int64)[None], group.to(tl.int64)
    u += sequence * su_b + of * su_g + wide * su_d
    delta += sequence * st_b + of * st_g + wide * st_d
    out += sequence * sy_b + of * sy_g + wide * sy_d
    if table is not None:
        table += sequence * so_b + of * L
    if RESETS:
        seq_idx += sequence * tokens
    first = chunk * chunk_blocks
    EVERY: tl.constexpr = INTERVAL // T
    rounds = tl.cdiv(tl.minimum(chunk_blocks, tl.cdiv(L, T) - first), EVERY)
    if starts is not None:
        h = settled(tl.load(starts + ((sequence * chunks + chunk) * N + n5) * D + d5, mask=there5, other=0.0))
    elif initial is not None:
        h = settled(tl.load(initial + (sequence * D + d5) * N + n5, mask=there5, other=0.0))
    else:
        h = tl.zeros([S, BC, G, BD], tl.float32)
    position = first * T + tl.arange(0, T)
    token = visited(table, position, position < L)
    mask = (position < L)[:, None, None] & there[None]
    u_ = tl.load(u + along(token, su_l, WIDE)[:, None, None], mask=mask, other=0.0)
    delta_ = tl.load(delta + along(token, st_l, WIDE)[:, None, None], mask=mask, other=0.0)
    kept = checkpoints + ((sequence * tl.cdiv(L, INTERVAL) + first // EVERY) * N + n5) * D + d5
    for _round in range(rounds):  # named, because Triton 3.2 carries `_` through the loop
        if SAVE:
            tl.store(kept, h, mask=there5)
            kept += N * D
        for _step in tl.static_range(EVERY):
            inside = position < L
            mask = inside[:, None, None] & there[None]
            uu = u_.to(tl.float32)
            _, dt = time_steps(delta_, bias, inside, SOFTPLUS)
            new = begins(seq_idx, table, position, token, inside, BC, G, BD)
            ahead = position + T
            token_ahead = visited(table, ahead, ahead < L)
            mask_ahead = (ahead < L)[:, None, None] & there[None]
            u_ = tl.load(u + along(token_ahead, su_l, WIDE)[:, None, None], mask=mask_ahead, other=0.0)
            delta_ = tl.load(delta + along(token_ahead, st_l, WIDE)[:, None, None], mask=mask_ahead, other=0.0)
            b6 = matrix(B, sequence, group, token, inside, d5, n5, there5, sB_b, sB_g, sB_n, sB_l, B_VARIES, N, WIDE)
            c6 = matrix(C, sequence, group, token, inside, d5, n5, there5, sC_b, sC_g, sC_n, sC_l, C_VARIES, N, WIDE)
            decay = tl.exp2(dt[:, None, :, None, :] * a[None])  # [T, S, BC, G, BD]
            fed = (dt * uu)[:, None, :, None, :] * b6
            y6 = tl.zeros([T, BC, G, BD], tl.float32)
            for i in tl.static_range(T):
                h = take(decay, i) * cut(h, new, i, RESETS) + take(fed, i)
                y6 = put(y6, i, add_up(h * take(c6, i)))
            y = off_lanes(y6) + skip[None] * uu
            if z is not None:
                pz = z + sequence * sz_b + of * sz_g + wide * sz_d + along(token, sz_l, WIDE)[:, None, None]
                gate = tl.load(pz, mask=mask, other=0.0).to(tl.float32)
                y *= gate * sigmoid(gate)
            tl.store(out + along(token, sy_l, WIDE)[:, None, None], y.to(out.dtype.element_ty), mask=mask)
            position, token = ahead, token_ahead
    if last_state is not None:
        tl.store(last_state + (sequence * D + d5) * N + n5, h, mask=there5)


# --- backward ---------------------------------------------------------------------------------------------------------


@triton.jit
def selective_scan_bwd_kernel(
    dout, dlast_state, u, delta, A, B, C, Dskip, z, delta_bias, table, seq_idx, checkpoints, starts,
    du, ddelta, dz, dA, dB, dC, dD, ddelta_bias, dinitial,
    batch, D, groups, L, tokens, chunks, chunk_blocks,
    sg_b, sg_g, sg_d, sg_l, su_b, su_g, su_d, su_l, st_b, st_g, st_d, st_l,
    sB_b, sB_g, sB_n, sB_l, sC_b, sC_g, sC_n, sC_l, sz_b, sz_g, sz_d, sz_l, so_b,
    sdu_b, sdu_g, sdu_d, sdu_l, sdt_b, sdt_g, sdt_d, sdt_l, sdz_b, sdz_g, sdz_d, sdz_l,
    N: tl.constexpr, B_VARIES: tl.constexpr, C_VARIES: tl.constexpr, SOFTPLUS: tl.constexpr, WIDE: tl.constexpr,
    T: tl.constexpr, S: tl.constexpr, G: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Formulas as in ss2d_bwd_kernel, with dy = dout SiLU(z) and dz = dout y SiLU'(z).

    Writes du, ddelta and dz, the gradient of the initial state, and one partial sum per program of the others: dA (B
    chunks, N, D), dD and ddelta_bias (B chunks, D); dB and dC (blocks of a group, B, groups, tokens, N) if they vary,
    else like dA.
    """
    EVERY: tl.constexpr = INTERVAL // T
    RESETS: tl.constexpr = seq_idx is not None
    block, group, chunk, sequence, lane, there, d = share(D, groups, chunks, BC, BD)
    n5, d5, there5 = states(d, there, N, S, G)
    a = settled(decay_rate(tl.load(A + d5 * N + n5, mask=there5, other=0.0).to(tl.float32)))
    bias = per_channel(delta_bias, d, there)
    skip = per_channel(Dskip, d, there)
    of = group.to(tl.int64)
    dout += sequence * sg_b + of * sg_g
    u += sequence * su_b + of * su_g
    delta += sequence * st_b + of * st_g
    du += sequence * sdu_b + of * sdu_g
    ddelta += sequence * sdt_b + of * sdt_g
    if table is not None:
        table += sequence * so_b + of * L
    if RESETS:
        seq_idx += sequence * tokens
    first = chunk * chunk_blocks
    count = tl.minimum(chunk_blocks, tl.cdiv(L, T) - first)
    rounds = tl.cdiv(count, EVERY)
    rows = ((block.to(tl.int64) * batch + sequence) * groups + group) * tokens
    n = (tl.arange(0, S)[None, :] + S * tl.arange(0, G)[:, None])[None]  # [1, G, S]
    if starts is not None:
        carry = settled(tl.load(starts + ((sequence * chunks + chunk) * N + n5) * D + d5, mask=there5, other=0.0))
    elif dlast_state is not None:
        carry = settled(tl.load(dlast_state + (sequence * D + d5) * N + n5, mask=there5, other=0.0).to(tl.float32))
    else:
        carry = tl.zeros([S, BC, G, BD], tl.float32)
    sum_A = tl.zeros([S, BC, G, BD], tl.float32)
    sum_B = tl.zeros([S, BC, G, BD], tl.float32)
    sum_C = tl.zeros([S, BC, G, BD], tl.float32)
    sum_D = tl.zeros([T, BC, BD], tl.float32)
    sum_raw = tl.zeros([T, BC, BD], tl.float32)
    for r in range(rounds):
        # The states at the start of each step of the round, in the order of the scan.
        start = first + (rounds - 1 - r) * EVERY
        index = sequence * tl.cdiv(L, INTERVAL) + start // EVERY
        h = settled(tl.load(checkpoints + (index * N + n5) * D + d5, mask=there5, other=0.0))
        before_step = tl.zeros([EVERY, S, BC, G, BD], tl.float32)
        for s in range(EVERY - 1):
            before_step = put(before_step, s, h)
            position = (start + s) * T + tl.arange(0, T)
            inside = position < L
            token = visited(table, position, inside)
            mask = inside[:, None, None] & there[None]
            uu = tl.load(u + place(token, lane, su_d, su_l, WIDE), mask=mask, other=0.0).to(tl.float32)
            steps = tl.load(delta + place(token, lane, st_d, st_l, WIDE), mask=mask, other=0.0)
            _, dt = time_steps(steps, bias, inside, SOFTPLUS)
            b6 = matrix(B, sequence, group, token, inside, d5, n5, there5, sB_b, sB_g, sB_n, sB_l, B_VARIES, N, WIDE)
            new = begins(seq_idx, table, position, token, inside, BC, G, BD)
            decay = tl.exp2(dt[:, None, :, None, :] * a[None])
            fed = (dt * uu)[:, None, :, None, :] * b6
            for i in tl.static_range(T):
                h = take(decay, i) * cut(h, new, i, RESETS) + take(fed, i)
        before_step = put(before_step, EVERY - 1, h)

        for s in range(EVERY):
            h = take(before_step, EVERY - 1 - s)
            position = (start + EVERY - 1 - s) * T + tl.arange(0, T)
            inside = position < L
            token = visited(table, position, inside)
            mask = inside[:, None, None] & there[None]
            uu = tl.load(u + place(token, lane, su_d, su_l, WIDE), mask=mask, other=0.0).to(tl.float32)
            steps = tl.load(delta + place(token, lane, st_d, st_l, WIDE), mask=mask, other=0.0)
            gg = tl.load(dout + place(token, lane, sg_d, sg_l, WIDE), mask=mask, other=0.0).to(tl.float32)
            raw, dt = time_steps(steps, bias, inside, SOFTPLUS)
            if z is not None:
                pz = z + sequence * sz_b + of * sz_g + place(token, lane, sz_d, sz_l, WIDE)
                gate = tl.load(pz, mask=mask, other=0.0).to(tl.float32)
                opened = sigmoid(gate)
                dgate = gg * opened * (1.0 + gate * (1.0 - opened))
                gg *= gate * opened
            b6 = matrix(B, sequence, group, token, inside, d5, n5, there5, sB_b, sB_g, sB_n, sB_l, B_VARIES, N, WIDE)
            c6 = matrix(C, sequence, group, token, inside, d5, n5, there5, sC_b, sC_g, sC_n, sC_l, C_VARIES, N, WIDE)
            dt6 = tl.broadcast_to(dt[:, None, :, None, :], [T, S, BC, G, BD])
            x6 = tl.broadcast_to((dt * uu)[:, None, :, None, :], [T, S, BC, G, BD])
            g6 = tl.broadcast_to(gg[:, None, :, None, :], [T, S, BC, G, BD])
            decay = tl.exp2(dt6 * a[None])
            new = begins(seq_idx, table, position, token, inside, BC, G, BD)
            before = tl.zeros([T, S, BC, G, BD], tl.float32)  # P
            gradient = tl.zeros([T, S, BC, G, BD], tl.float32)  # of C, channel by channel
            y6 = tl.zeros([T, BC, G, BD], tl.float32)
            for i in tl.static_range(T):
                decayed = take(decay, i) * cut(h, new, i, RESETS)
                h = decayed + take(x6, i) * take(b6, i)
                before = put(before, i, decayed)
                if C_VARIES:
                    gradient = put(gradient, i, h * take(g6, i))
                else:
                    sum_C += h * take(g6, i)
                if z is not None:
                    y6 = put(y6, i, add_up(h * take(c6, i)))
            there_n = (n < N) & inside[:, None, None]
            row = (rows + token.to(tl.int64))[:, None, None] * N + n
            if C_VARIES:
                tl.store(dC + row, off_channels(gradient), mask=there_n)
            if z is not None:
                pdz = dz + sequence * sdz_b + of * sdz_g + place(token, lane, sdz_d, sdz_l, WIDE)
                y = off_lanes(y6) + skip[None] * uu
                tl.store(pdz, (dgate * y).to(dz.dtype.element_ty), mask=mask)

            # Read again, from L1, to save registers: only the pass back over the tokens uses it.
            b6 = matrix(B, sequence, group, token, inside, d5, n5, there5, sB_b, sB_g, sB_n, sB_l, B_VARIES, N, WIDE)
            gradient = tl.zeros([T, S, BC, G, BD], tl.float32)  # of B
            ddt = tl.zeros([T, BC, G, BD], tl.float32)
            dfed = tl.zeros([T, BC, G, BD], tl.float32)
            for back in tl.static_range(T):
                t = T - 1 - back
                g = take(g6, t) * take(c6, t) + carry
                w = g * take(before, t)
                ddt = put(ddt, t, add_up(w * a))
                dfed = put(dfed, t, add_up(g * take(b6, t)))
                sum_A += w * take(dt6, t)
                if B_VARIES:
                    gradient = put(gradient, t, g * take(x6, t))
                else:
                    sum_B += g * take(x6, t)
                carry = cut(take(decay, t) * g, new, t, RESETS)
            if B_VARIES:
                tl.store(dB + row, off_channels(gradient), mask=there_n)

            dfed = off_lanes(dfed)  # [T, BC, BD]
            draw = off_lanes(ddt) * LN_2 + uu * dfed
            if SOFTPLUS:
                draw *= softplus_slope(raw, dt)
            sum_raw += tl.where(inside[:, None, None], draw, 0.0)  # the state and its gradient are not 0 past the end
            sum_D += gg * uu
            pdu = du + place(token, lane, sdu_d, sdu_l, WIDE)
            tl.store(pdu, (dt * dfed + skip[None] * gg).to(du.dtype.element_ty), mask=mask)
            pdt = ddelta + place(token, lane, sdt_d, sdt_l, WIDE)
            tl.store(pdt, draw.to(ddelta.dtype.element_ty), mask=mask)
    part = sequence * chunks + chunk
    state = (part * N + n5) * D + d5
    tl.store(dA + state, sum_A, mask=there5)
    if not B_VARIES:
        tl.store(dB + state, sum_B, mask=there5)
    if not C_VARIES:
        tl.store(dC + state, sum_C, mask=there5)
    if Dskip is not None:
        tl.store(dD + part * D + d, tl.sum(sum_D, 0), mask=there)
    if delta_bias is not None:
        tl.store(ddelta_bias + part * D + d, tl.sum(sum_raw, 0), mask=there)
    if dinitial is not None:
        tl.store(dinitial + (sequence * D + d5) * N + n5, carry, mask=there5 & (chunk == 0))


# --- launch -----------------------------------------------------------------------------------------------------------


class Order(NamedTuple):
    """The tokens that each group of channels visits, and the initial states."""

    table: Tensor | None = None  # (G, T) or (B, G, T), int32, dense: the token at each step; None: all in turn
    seq_idx: Tensor | None = None  # (B, L), int32, dense: the state is reset to zero where it changes
    initial_state: Tensor | None = None  # (B, D, N), float32, dense: for the first sequence visited; zeros if None

    def steps(self, tokens: int) -> int:
        """The number of steps, for a sequence of `tokens` tokens."""
        return tokens if self.table is None else self.table.shape[-1]


IN_ORDER = Order()


class _Plan:
    """Sizes and tiles of a call."""

    def __init__(
        self, kind: str, u: Tensor, A: Tensor, B: Tensor, C: Tensor, order: Order, *others: Tensor | None
    ) -> None:
        self.B, self.tokens = u.shape[0], u.shape[-1]
        self.D, self.N = A.shape
        self.L, self.order = order.steps(self.tokens), order
        self.groups = B.shape[1] if B.dim() == 4 else C.shape[1] if C.dim() == 4 else 1
        self.tiles = scan_tiles(kind, self.N, self.D // self.groups, self.B * self.groups, 1, processors(u))
        self.blocks = triton.cdiv(self.D // self.groups, self.tiles.channels)
        programs = self.B * self.groups * self.blocks
        self.chunks, self.chunk_blocks = chunking(programs, self.tiles, self.L, processors(u))
        self.grid = (programs * self.chunks,)
        self.wide = is_wide(*(t for t in (u, B, C, *others) if t is not None and t.dim() > 2))

    def sizes(self) -> tuple[int, ...]:
        return self.D, self.groups, self.L, self.tokens, self.chunks, self.chunk_blocks

    def constants(self) -> dict:
        return {"N": self.N, "WIDE": self.wide, **self.tiles._asdict(), "num_stages": 1, "enable_fp_fusion": True}

    def strides(self, t: Tensor | None) -> tuple[int, int, int, int]:
        """The strides of sequence, group, channel of the group and token."""
        if t is None:
            return 0, 0, 0, 0
        if t.dim() == 4:
            return t.stride()
        return t.stride(0), t.stride(1) * (self.D // self.groups), t.stride(1), t.stride(2)

    def order_strides(self) -> tuple[int]:
        table = self.order.table
        return (table.stride(0) if table is not None and table.dim() == 3 else 0,)

    def starts(self, v, delta, A, m, z, delta_bias, delta_softplus, adjoint, initial, last) -> Tensor | None:
        """Each chunk's state at its start, (B, 1, chunks, N, D); None if there is only one chunk."""
        if self.chunks == 1:
            return None
        ends = torch.empty(self.B, 1, self.chunks, self.N, self.D, dtype=torch.float32, device=v.device)
        steps = torch.empty(self.B, 1, self.chunks, self.D, dtype=torch.float32, device=v.device)
        table, seq_idx, _ = self.order
        selective_scan_states_kernel[self.grid](
            v, delta, A, m, z, delta_bias, table, seq_idx, ends, steps, *self.sizes(),
            *self.strides(v), *self.strides(delta), *_matrix_strides(m), *self.strides(z), *self.order_strides(),
            VARIES=m.dim() > 2, SOFTPLUS=delta_softplus, ADJOINT=adjoint, **self.constants(),
        )  # fmt: skip
        chain_kernel[(self.B * triton.cdiv(self.N * self.D, CHAIN_BLOCK),)](
            ends, steps, A, initial, last, self.D, self.chunks, 1, self.N, False, adjoint, seq_idx is not None,
            CHAIN_BLOCK, num_warps=4,
        )  # fmt: skip
        return ends


def _matrix_strides(m: Tensor) -> tuple[int, int, int, int]:
    """The strides of sequence, group, state and token; for a constant matrix, the first is that of the channels."""
    if m.dim() == 2:
        return m.stride(0), 0, m.stride(1), 0
    return m[:, None].stride() if m.dim() == 3 else m.stride()


def _dense(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.contiguous() for t in tensors)


def checkpoint_shape(u: Tensor, A: Tensor, steps: int | None = None) -> tuple[int, ...]:
    """The shape of the states, float32, that `forward` saves for `backward`: (B, ceil(steps / 16), N, D).

    `steps` is the number of tokens if None.
    """
    channels, states = A.shape
    return u.shape[0], triton.cdiv(u.shape[-1] if steps is None else steps, STATE_INTERVAL), states, channels


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    save: bool,
    order: Order = IN_ORDER,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the output, the last state and the states saved for `backward`, which are empty unless `save`.

    The output has the dtype and layout of u; the last state is float32, (B, D, N). The arguments are those of
    `mtlkit.ops.selective_scan`, which checks them. In this module, u, delta and z, and their gradients, may also be
    (B, G, D / G, L), divided into the groups of channels that share B and C. The output is written to `out` if that is
    given; tokens that are not visited keep their values there.

    Raises:
        TypeError: the dtype of an input is not float32, bfloat16 or float16.
    """
    check_dtypes("selective_scan", u, delta, A, B, C, D, z, delta_bias)
    out = torch.empty_like(u) if out is None else out
    last = torch.empty(u.shape[0], *A.shape, dtype=torch.float32, device=u.device)
    kept = checkpoint_shape(u, A, order.steps(u.shape[-1]))
    checkpoints = torch.empty(kept if save else (kept[0], 0, *kept[2:]), dtype=torch.float32, device=u.device)
    if u.shape[0] == 0:
        return out, last, checkpoints
    with on_device(u):
        plan = _Plan("forward", u, A, B, C, order, delta, z, out)
        A, D, delta_bias = _dense(A, D, delta_bias)
        starts = plan.starts(u, delta, A, B, None, delta_bias, delta_softplus, False, order.initial_state, last)
        selective_scan_fwd_kernel[plan.grid](
            u, delta, A, B, C, D, z, delta_bias, *order, out, last if starts is None else None, starts, checkpoints,
            *plan.sizes(), *plan.strides(u), *plan.strides(delta), *_matrix_strides(B), *_matrix_strides(C),
            *plan.strides(z), *plan.order_strides(), *plan.strides(out),
            B_VARIES=B.dim() > 2, C_VARIES=C.dim() > 2, SOFTPLUS=delta_softplus, SAVE=save,
            **plan.constants(),
        )  # fmt: skip
    return out, last, checkpoints


def backward(
    dout: Tensor,
    dlast_state: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    checkpoints: Tensor,
    delta_softplus: bool,
    order: Order = IN_ORDER,
    du: Tensor | None = None,
    dinitial_state: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of u, delta, A, B, C, D, z and delta_bias, each in the dtype and layout of its tensor.

    `dlast_state` is the gradient of the last state, None for zeros. The gradient of an argument that is None is None.
    The gradient of u is written to `du` if given, and that of the initial state to `dinitial_state`.

    Raises:
        TypeError: the dtype of an input is not float32, bfloat16 or float16.
    """
    check_dtypes("selective_scan", dout, dlast_state, u, delta, A, B, C, D, z, delta_bias)
    all_visited = order.steps(u.shape[-1]) == u.shape[-1]
    fresh = torch.empty if all_visited else torch.zeros
    du = torch.empty_like(u) if du is None else du
    ddelta = torch.empty_like(delta) if all_visited else torch.zeros_like(delta)
    dz = None if z is None else torch.empty_like(z)
    if u.shape[0] == 0:
        zeros = [None if t is None else torch.zeros_like(t) for t in (A, B, C, D, delta_bias)]
        return du, ddelta, *zeros[:4], dz, zeros[4]
    with on_device(u):
        plan = _Plan("backward", u, A, B, C, order, delta, z, dout, du, ddelta, dz)
        dense_A, dense_D, dense_bias, dlast = _dense(A, D, delta_bias, dlast_state)
        starts = plan.starts(dout, delta, dense_A, C, z, dense_bias, delta_softplus, True, dlast, None)
        parts = plan.B * plan.chunks

        def new(*shape: int) -> Tensor:
            return fresh(shape, dtype=torch.float32, device=u.device)

        def of_matrix(m: Tensor) -> Tensor:
            if m.dim() == 2:
                return new(parts, plan.N, plan.D)
            return new(plan.blocks, plan.B, plan.groups, plan.tokens, plan.N)

        dA, dB, dC = new(parts, plan.N, plan.D), of_matrix(B), of_matrix(C)
        dD, dbias = new(parts, plan.D), new(parts, plan.D)
        selective_scan_bwd_kernel[plan.grid](
            dout, dlast, u, delta, dense_A, B, C, dense_D, z, dense_bias, order.table, order.seq_idx, checkpoints,
            starts, du, ddelta, dz, dA, dB, dC, dD, dbias, dinitial_state,
            plan.B, *plan.sizes(), *plan.strides(dout), *plan.strides(u), *plan.strides(delta),
            *_matrix_strides(B), *_matrix_strides(C), *plan.strides(z), *plan.order_strides(),
            *plan.strides(du), *plan.strides(ddelta), *plan.strides(dz),
            B_VARIES=B.dim() > 2, C_VARIES=C.dim() > 2, SOFTPLUS=delta_softplus,
            **plan.constants(),
        )  # fmt: skip

        def whole(partial: Tensor, tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            total = partial.sum(0)
            if total.dim() == 2:  # (N, D)
                total = total.t()
            elif total.dim() == 4:  # (B, G, L, N)
                total = total.transpose(2, 3)
                total = total[:, 0] if tensor.dim() == 3 else total
            return like(total, tensor)

        return (
            du, ddelta, whole(dA, A), whole(dB, B), whole(dC, C), whole(dD, D), dz, whole(dbias, delta_bias),
        )  # fmt: skip
