r"""SS2D in Triton, forward and backward: formula and letters as in mtlkit/operators/ss2d.

A program owns a pair of opposite directions (0 and 2 walk rows, 1 and 3 columns) of a block of channels of one image,
or of a chunk of its positions. Both directions advance together through the same positions from opposite ends, T tokens
a step. The first to reach a block of positions writes its output, the other adds to it, in a fixed order without
atomics. So each pair writes one float32 map, and y is the sum of the two maps.

A launch of too few programs (`split` in tables.py) cuts the positions into chunks: a pass over only the states gives
each chunk's last state from a zero start and the sum of its time steps, `chain_kernel` turns these into the chunks'
initial states, and the full pass runs all chunks at once. Backward does the same with the adjoint state.

Backward walks each direction against its order. From a state saved by the forward pass it recomputes the states at
every T tokens, then the T states of a step, in registers. Gradients that are sums over programs are written as one
partial sum per program and added up in a fixed order, so results are bitwise reproducible.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtlkit.kernels._launch import check_dtypes, division, is_wide, like, on_device, processors
from mtlkit.kernels._scan import (
    CHAIN_BLOCK,
    INTERVAL,
    LN_2,
    add_up,
    along,
    chain_kernel,
    over_channels,
    put,
    settled,
    softplus_slope,
    take,
    walk,
)
from mtlkit.kernels._ss2d_tiles import (
    channels,
    decays,
    fetch,
    lines,
    matrix,
    off_lanes,
    on_lanes,
    positions,
    projection,
    rows,
    share,
    steps_on_lanes,
    time_steps,
    values,
    within,
)
from mtlkit.kernels.tables import STATE_INTERVAL, chunking, held, rank_tile, scan_tiles

DIRECTIONS = 4

# --- only the states, for split scans ---------------------------------------------------------------------------------


@triton.jit
def ss2d_states_kernel(
    v, x_dbl, dt_weight, dt_bias, A_logs, ends, steps,
    D, H, W, L, chunks, chunk_blocks,
    multiplier_w, shift_w, multiplier_h, shift_h,
    sv_b, sv_d, sv_h, sv_w,
    sx_b, sx_k, sx_m, sx_h, sx_w,
    R: tl.constexpr, N: tl.constexpr, RP: tl.constexpr, HELD: tl.constexpr, ADJOINT: tl.constexpr, WIDE: tl.constexpr,
    T: tl.constexpr, S: tl.constexpr, G: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A chunk's last state from a zero start, and the sum of its time steps.

    The state is h with v = u; if ADJOINT, the gradient that passes from a chunk to the previous one, with v = dy.
    """
    image, chunk, pair, d = share(D, chunks, BC, BD)
    kk = tl.arange(0, 2)
    k = pair + 2 * kk
    a, n5, inside5 = decays(A_logs, pair, d, D, N, S, G)
    weight, bias = projection(dt_weight, dt_bias, k, d, D, R, RP)
    multiplier = tl.where(pair == 0, multiplier_w, multiplier_h)
    shift = tl.where(pair == 0, shift_w, shift_h)
    sv_bend, sv_step = lines(pair, H, W, sv_h, sv_w, WIDE)
    sx_bend, sx_step = lines(pair, H, W, sx_h, sx_w, WIDE)
    reach = tl.where(d < D, L, 0)[None, None]
    v += image * sv_b
    x_dbl += image * sx_b
    of_d, of_k = along(d, sv_d, WIDE)[None, None], along(k, sx_k, WIDE)[None]
    first = chunk * chunk_blocks
    count = tl.minimum(chunk_blocks, tl.cdiv(L, T) - first)
    h = tl.zeros([S, 2, BC, G, BD], tl.float32)
    total = tl.zeros([T, 2, BC, BD], tl.float32)
    for j in range(count):
        step = count - 1 - j if ADJOINT else j
        position = positions(step, first, count, T)
        inside = within(position, L)
        at = walk(position, sv_bend, sv_step, multiplier, shift, WIDE)[:, :, None, None] + of_d
        vv = values(channels(v + at, within(position[:, :, None, None], reach), HELD), HELD)
        px = x_dbl + (walk(position, sx_bend, sx_step, multiplier, shift, WIDE) + of_k)
        dts = rows(px, inside, sx_m, R, RP, WIDE).to(tl.float32)
        m = matrix(px, R + N if ADJOINT else R, inside, sx_m, N, S, G, WIDE)
        _, dt = time_steps(dts, weight, bias, inside, R)
        total += dt
        dt6, driven = steps_on_lanes(dt, vv if ADJOINT else dt * vv, S, G)
        decay = tl.exp2(dt6 * a[None])  # [T, S, 2, BC, G, BD]
        fed = driven * on_lanes(m, BC, BD)
        for i in tl.static_range(T):
            if ADJOINT:
                h = take(decay, T - 1 - i) * (h + take(fed, T - 1 - i))
            else:
                h = take(decay, i) * h + take(fed, i)
    walked = (image * 4 + k) * chunks + chunk  # [2]
    tl.store(ends + (walked[None, :, None, None, None] * N + n5) * D + d[None, None, :, None, :], h, mask=inside5)
    steps += walked[:, None, None] * D + d[None]
    tl.store(steps, tl.sum(total, 0), mask=(d < D)[None])


# --- forward ----------------------------------------------------------------------------------------------------------


@triton.jit
def ss2d_fwd_kernel(
    u, x_dbl, dt_weight, dt_bias, A_logs, Ds, maps, starts, checkpoints,
    B, D, H, W, L, chunks, chunk_blocks,
    multiplier_w, shift_w, multiplier_h, shift_h,
    su_b, su_d, su_h, su_w,
    sx_b, sx_k, sx_m, sx_h, sx_w,
    R: tl.constexpr, N: tl.constexpr, RP: tl.constexpr, HELD: tl.constexpr,
    SAVE: tl.constexpr, WIDE: tl.constexpr,
    T: tl.constexpr, S: tl.constexpr, G: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The output of both directions of a pair, summed, into maps (2, B, L, D)."""
    image, chunk, pair, d = share(D, chunks, BC, BD)
    kk = tl.arange(0, 2)
    k = pair + 2 * kk
    a, n5, inside5 = decays(A_logs, pair, d, D, N, S, G)
    weight, bias = projection(dt_weight, dt_bias, k, d, D, R, RP)
    skip = tl.load(Ds + k[:, None, None] * D + d[None], mask=(d < D)[None], other=0.0).to(tl.float32)
    multiplier = tl.where(pair == 0, multiplier_w, multiplier_h)
    shift = tl.where(pair == 0, shift_w, shift_h)
    su_bend, su_step = lines(pair, H, W, su_h, su_w, WIDE)
    sx_bend, sx_step = lines(pair, H, W, sx_h, sx_w, WIDE)
    sp_bend, sp_step = lines(pair, H, W, W * D, D, WIDE)
    there = (d < D)[None, None]
    u += image * su_b
    x_dbl += image * sx_b
    maps += (pair * B + image) * L * D
    of_d, of_k = along(d, su_d, WIDE)[None, None], along(k, sx_k, WIDE)[None]
    first = chunk * chunk_blocks
    EVERY: tl.constexpr = INTERVAL // T  # even, so that the directions never visit a block at the same step
    groups = tl.cdiv(tl.minimum(chunk_blocks, tl.cdiv(L, T) - first), EVERY)
    steps = groups * EVERY
    lane = d[None, None, :, None, :]
    if starts is not None:
        walked = ((image * 4 + k) * chunks + chunk)[None, :, None, None, None]
        h = settled(tl.load(starts + (walked * N + n5) * D + lane, mask=inside5, other=0.0))
    else:
        h = tl.zeros([S, 2, BC, G, BD], tl.float32)

    reach = tl.where(there, L, 0)
    position = positions(0, first, steps, T)
    u_, dts_, b_, c_ = fetch(
        u, x_dbl, of_d, of_k, position, L, reach, su_bend, su_step, sx_bend, sx_step, sx_m, multiplier, shift,
        R, RP, HELD, N, S, G, WIDE,
    )  # fmt: skip
    index = (image * 4 + k) * tl.cdiv(L, INTERVAL) + tl.where(kk == 0, 0, groups - 1) + first // EVERY
    kept = checkpoints + (index[None, :, None, None, None] * N + n5) * D + lane
    next_kept = tl.where(kk == 0, N * D, -N * D)[None, :, None, None, None]
    for group in range(groups):
        if SAVE:
            tl.store(kept, h, mask=inside5)
            kept += next_kept
        for s in tl.static_range(EVERY):
            j = group * EVERY + s
            uu, dts, b, c, inside = values(u_, HELD), dts_.to(tl.float32), b_, c_, within(position, L)
            py = maps + (walk(position, sp_bend, sp_step, multiplier, shift, WIDE)[:, :, None, None] + d[None, None])
            mask = within(position[:, :, None, None], reach)
            position = positions(j + 1, first, steps, T)
            u_, dts_, b_, c_ = fetch(
                u, x_dbl, of_d, of_k, position, L, reach, su_bend, su_step, sx_bend, sx_step, sx_m, multiplier, shift,
                R, RP, HELD, N, S, G, WIDE,
            )  # fmt: skip
            _, dt = time_steps(dts, weight, bias, inside, R)
            dt6, x6 = steps_on_lanes(dt, dt * uu, S, G)
            decay = tl.exp2(dt6 * a[None])
            fed = x6 * on_lanes(b, BC, BD)
            c6 = on_lanes(c, BC, BD)
            y6 = tl.zeros([T, 2, BC, G, BD], tl.float32)
            for i in tl.static_range(T):
                h = take(decay, i) * h + take(fed, i)
                y6 = put(y6, i, add_up(h * take(c6, i)))
            y = off_lanes(y6, HELD) + skip[None] * uu

            tl.debug_barrier()  # makes writes of the other direction's threads at earlier steps visible
            y += tl.load(py, mask=mask & (steps - 1 - j < j), other=0.0)
            tl.store(py, y, mask=mask)


# --- backward ---------------------------------------------------------------------------------------------------------


@triton.jit
def _over_channels(v):
    """[T, S, 2, BC, G, BD] to [T, 2, G, S], so that neighbouring threads have neighbouring states."""
    T: tl.constexpr = v.shape[0]
    S: tl.constexpr = v.shape[1]
    G: tl.constexpr = v.shape[4]
    return tl.reshape(over_channels(tl.permute(v, (3, 5, 0, 2, 4, 1)), T * S * 2 * G), [T, 2, G, S])


@triton.jit
def ss2d_bwd_kernel(
    dy, u, x_dbl, dt_weight, dt_bias, A_logs, Ds, checkpoints, starts, maps, dx_dbl, ddt_weight, ddt_bias, dA_logs, dDs,
    B, D, H, W, L, chunks, chunk_blocks,
    multiplier_w, shift_w, multiplier_h, shift_h,
    sg_b, sg_d, sg_h, sg_w,
    su_b, su_d, su_h, su_w,
    sx_b, sx_k, sx_m, sx_h, sx_w,
    R: tl.constexpr, N: tl.constexpr, RP: tl.constexpr, HELD: tl.constexpr,
    WIDE: tl.constexpr,
    T: tl.constexpr, S: tl.constexpr, G: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """All gradients. With g_t = dy_t C_t + exp(dt_{t+1} A) g_{t+1} and P_t = exp(dt_t A) h_{t-1}, for each direction.

    dB_t = sum_d g_t dt_t u_t        dC_t = sum_d dy_t h_t        dA = sum_t g_t P_t dt_t
    du_t = dt_t sum_n g_t B_t + Ds dy_t
    ddt_t = sum_n g_t P_t A + u_t sum_n g_t B_t, and from there through softplus to W, b and the time step's rows.

    Writes du into maps (2, B, L, D), and one partial sum per program of the other gradients: dx_dbl (blocks of D, B, L,
    4, M), ddt_weight (B chunks, 4, R, D), ddt_bias and dDs (B chunks, 4, D), dA_logs (B chunks, 4, N, D).
    """
    EVERY: tl.constexpr = INTERVAL // T  # even, so that the directions never visit a block at the same step
    M: tl.constexpr = R + 2 * N
    image, chunk, pair, d = share(D, chunks, BC, BD)
    kk = tl.arange(0, 2)
    k = pair + 2 * kk
    a, n5, inside5 = decays(A_logs, pair, d, D, N, S, G)
    weight, bias = projection(dt_weight, dt_bias, k, d, D, R, RP)
    skip = tl.load(Ds + k[:, None, None] * D + d[None], mask=(d < D)[None], other=0.0).to(tl.float32)
    multiplier = tl.where(pair == 0, multiplier_w, multiplier_h)
    shift = tl.where(pair == 0, shift_w, shift_h)
    sg_bend, sg_step = lines(pair, H, W, sg_h, sg_w, WIDE)
    su_bend, su_step = lines(pair, H, W, su_h, su_w, WIDE)
    sx_bend, sx_step = lines(pair, H, W, sx_h, sx_w, WIDE)
    sp_bend, sp_step = lines(pair, H, W, W * D, D, WIDE)
    sr_bend, sr_step = lines(pair, H, W, W * 4 * M, 4 * M, WIDE)
    n = tl.arange(0, S)[None, :] + S * tl.arange(0, G)[:, None]
    there = (d < D)[None, None]
    lane = d[None, None, :, None, :]
    dy += image * sg_b
    u += image * su_b
    x_dbl += image * sx_b
    maps += (pair * B + image) * L * D
    of_d, of_k = along(d, su_d, WIDE)[None, None], along(k, sx_k, WIDE)[None]
    dx_dbl += ((tl.program_id(0) % tl.cdiv(D, BC * BD)).to(tl.int64) * B + image) * L * 4 * M
    first = chunk * chunk_blocks
    count = tl.minimum(chunk_blocks, tl.cdiv(L, T) - first)
    groups = tl.cdiv(count, EVERY)
    steps = groups * EVERY
    walked = (image * 4 + k) * chunks + chunk
    if starts is not None:
        slot = starts + (walked[None, :, None, None, None] * N + n5) * D + lane
        carry = settled(tl.load(slot, mask=inside5, other=0.0))
    else:
        carry = tl.zeros([S, 2, BC, G, BD], tl.float32)
    dA = tl.zeros([S, 2, BC, G, BD], tl.float32)
    sum_raw = tl.zeros([T, 2, BC, BD], tl.float32)
    sum_skip = tl.zeros([T, 2, BC, BD], tl.float32)
    # Weights that do not fit in registers along with the states: they are read again, from L1, where they are used.
    MANY: tl.constexpr = not HELD and BC * BD <= 32
    if HELD:
        sum_weight = tl.zeros([RP, T, 2, BC, BD], tl.float32)
    else:
        sum_weight = tl.zeros([RP, 2, BC, BD], tl.float32)
    reach = tl.where(there, L, 0)
    for group in range(groups):
        # The states at the start of each step of the group, in the order of the scan.
        index = (image * 4 + k) * tl.cdiv(L, INTERVAL) + tl.where(kk == 0, groups - 1 - group, group) + first // EVERY
        kept = checkpoints + (index[None, :, None, None, None] * N + n5) * D + lane
        h = settled(tl.load(kept, mask=inside5, other=0.0))
        begins = tl.zeros([EVERY, S, 2, BC, G, BD], tl.float32)
        for s in range(EVERY - 1):
            begins = put(begins, s, h)
            position = positions(steps - (group + 1) * EVERY + s, first, steps, T)
            u_, dts, b, _ = fetch(
                u, x_dbl, of_d, of_k, position, L, reach, su_bend, su_step, sx_bend, sx_step, sx_m, multiplier, shift,
                R, RP, HELD, N, S, G, WIDE,
            )  # fmt: skip
            if MANY:
                weight, bias = projection(dt_weight, dt_bias, k, d, D, R, RP)
            _, dt = time_steps(dts.to(tl.float32), weight, bias, within(position, L), R)
            dt6, x6 = steps_on_lanes(dt, dt * values(u_, HELD), S, G)
            decay = tl.exp2(dt6 * a[None])
            fed = x6 * on_lanes(b, BC, BD)
            for i in tl.static_range(T):
                h = take(decay, i) * h + take(fed, i)
        begins = put(begins, EVERY - 1, h)

        for s in range(EVERY):
            h = take(begins, EVERY - 1 - s)
            j = group * EVERY + s
            position = positions(steps - 1 - j, first, steps, T)
            inside = within(position, L)
            mask = within(position[:, :, None, None], reach)
            u_, dts, b, c = fetch(
                u, x_dbl, of_d, of_k, position, L, reach, su_bend, su_step, sx_bend, sx_step, sx_m, multiplier, shift,
                R, RP, HELD, N, S, G, WIDE,
            )  # fmt: skip
            at = walk(position, sg_bend, sg_step, multiplier, shift, WIDE)[:, :, None, None]
            gg = values(channels(dy + (at + along(d, sg_d, WIDE)[None, None]), mask, HELD), HELD)
            uu, dts = values(u_, HELD), dts.to(tl.float32)
            if MANY:
                weight, bias = projection(dt_weight, dt_bias, k, d, D, R, RP)
            raw, dt = time_steps(dts, weight, bias, inside, R)
            pr = dx_dbl + (walk(position, sr_bend, sr_step, multiplier, shift, WIDE) + (k * M)[None])
            pn = pr[:, :, None, None] + R + n
            there_n = (n < N) & inside[:, :, None, None]
            dt6, x6 = steps_on_lanes(dt, dt * uu, S, G)
            g6 = tl.broadcast_to(gg[:, None, :, :, None, :], [T, S, 2, BC, G, BD])
            b6 = on_lanes(b, BC, BD)
            decay = tl.exp2(dt6 * a[None])
            before = tl.zeros([T, S, 2, BC, G, BD], tl.float32)  # P
            gradient = tl.zeros([T, S, 2, BC, G, BD], tl.float32)  # of C, channel by channel
            for i in tl.static_range(T):
                decayed = take(decay, i) * h
                h = decayed + take(x6, i) * take(b6, i)
                before = put(before, i, decayed)
                gradient = put(gradient, i, h * take(g6, i))
            tl.store(pn + N, _over_channels(gradient), mask=there_n)

            # B again, from L1, to save registers: only the pass back over the tokens uses it.
            px = x_dbl + (walk(position, sx_bend, sx_step, multiplier, shift, WIDE) + of_k)
            b6 = on_lanes(matrix(px, R, inside, sx_m, N, S, G, WIDE), BC, BD)
            c6 = on_lanes(c, BC, BD)
            gradient = tl.zeros([T, S, 2, BC, G, BD], tl.float32)  # of B
            ddt = tl.zeros([T, 2, BC, G, BD], tl.float32)
            dfed = tl.zeros([T, 2, BC, G, BD], tl.float32)
            for back in tl.static_range(T):
                t = T - 1 - back
                g = take(g6, t) * take(c6, t) + carry
                w = g * take(before, t)
                ddt = put(ddt, t, add_up(w * a))
                dfed = put(dfed, t, add_up(g * take(b6, t)))
                dA += w * take(dt6, t)
                gradient = put(gradient, t, g * take(x6, t))
                carry = g * take(decay, t)
            tl.store(pn, _over_channels(gradient), mask=there_n)

            dfed = off_lanes(dfed, HELD)  # [T, 2, BC, BD]
            draw = (off_lanes(ddt, HELD) * LN_2 + uu * dfed) * softplus_slope(raw, dt)
            du = dt * dfed + skip[None] * gg
            sum_raw += draw
            sum_skip += gg * uu
            if MANY:
                weight, bias = projection(dt_weight, dt_bias, k, d, D, R, RP)
                dts = rows(px, inside, sx_m, R, RP, WIDE).to(tl.float32)
                sum_weight += add_up(draw[:, None] * tl.permute(dts, (1, 0, 2))[:, :, :, None, None])
                drow = over_channels(tl.permute(draw[None] * weight[:, None], (3, 4, 1, 2, 0)), T * 2 * RP)
                r = tl.arange(0, RP)
                tl.store(pr[:, :, None] + r, tl.reshape(drow, [T, 2, RP]), mask=(r < R) & inside[:, :, None])
            else:
                of_weight, of_rows = draw[None] * dts[:, :, :, None, None], draw[None] * weight[:, None]
                sum_weight += of_weight if HELD else tl.sum(of_weight, 1)
                for r in tl.static_range(R):
                    tl.store(pr + r, tl.sum(tl.sum(take(of_rows, r), 3), 2), mask=inside)
            py = maps + (walk(position, sp_bend, sp_step, multiplier, shift, WIDE)[:, :, None, None] + d[None, None])
            tl.debug_barrier()  # makes writes of the other direction's threads at earlier steps visible
            du += tl.load(py, mask=mask & (steps - 1 - j < j), other=0.0)
            tl.store(py, du, mask=mask)
    part = image * chunks + chunk
    tl.store(dA_logs + ((part * 4 + k)[None, :, None, None, None] * N + n5) * D + lane, dA * a * LN_2, mask=inside5)
    channel = (part * 4 + k)[:, None, None] * D + d[None]
    tl.store(ddt_bias + channel, tl.sum(sum_raw, 0), mask=(d < D)[None])
    tl.store(dDs + channel, tl.sum(sum_skip, 0), mask=(d < D)[None])
    ddt_weight += (part * 4 + k)[:, None, None] * R * D + d[None]
    for r in tl.static_range(R):
        total = take(sum_weight, r)
        tl.store(ddt_weight + r * D, tl.sum(total, 0) if HELD else total, mask=(d < D)[None])


# --- launch -----------------------------------------------------------------------------------------------------------


class _Plan:
    """Sizes and tiles of a call."""

    def __init__(self, kind: str, u: Tensor, x_dbl: Tensor, dt_weight: Tensor, A_logs: Tensor, *others: Tensor) -> None:
        self.B, self.D, self.H, self.W = u.shape
        self.N, self.R = A_logs.shape[1], dt_weight.shape[2]
        self.L = self.H * self.W
        self.tiles = scan_tiles(kind, self.N, self.D, 2 * self.B, 2, processors(u))
        self.RP = rank_tile(kind, self.R, self.tiles)
        self.held = held(kind, self.R, self.tiles)
        programs = 2 * self.B * triton.cdiv(self.D, self.tiles.channels)
        self.chunks, self.chunk_blocks = chunking(programs, self.tiles, self.L, processors(u))
        self.grid = (programs * self.chunks,)
        self.divisions = (*division(self.W), *division(self.H))
        self.wide = is_wide(u, x_dbl, *others) or self.L * max(self.D, x_dbl.shape[1] * x_dbl.shape[2]) >= 1 << 31

    def constants(self) -> dict:
        return {
            "R": self.R,
            "N": self.N,
            "RP": self.RP,
            "HELD": self.held,
            "WIDE": self.wide,
            **self.tiles._asdict(),
            "num_stages": 1,
            "enable_fp_fusion": True,
        }

    def starts(self, v, x_dbl, dt_weight, dt_bias, A_logs, adjoint: bool) -> Tensor | None:
        """Each chunk's state at its start, (B, 4, chunks, N, D); None if there is only one chunk."""
        if self.chunks == 1:
            return None
        states = torch.empty(self.B, DIRECTIONS, self.chunks, self.N, self.D, dtype=torch.float32, device=v.device)
        steps = torch.empty(self.B, DIRECTIONS, self.chunks, self.D, dtype=torch.float32, device=v.device)
        ss2d_states_kernel[self.grid](
            v, x_dbl, dt_weight, dt_bias, A_logs, states, steps,
            self.D, self.H, self.W, self.L, self.chunks, self.chunk_blocks,
            *self.divisions, *v.stride(), *x_dbl.stride(),
            ADJOINT=adjoint, **self.constants(),
        )  # fmt: skip
        grid = (self.B * DIRECTIONS * triton.cdiv(self.N * self.D, CHAIN_BLOCK),)
        chain_kernel[grid](
            states, steps, A_logs, None, None, self.D, self.chunks,
            DIRECTIONS, self.N, True, adjoint, False, CHAIN_BLOCK, num_warps=4,
        )  # fmt: skip
        return states


def checkpoint_shape(u: Tensor, A_logs: Tensor) -> tuple[int, ...]:
    """The shape of the states, float32, that `forward` saves for `backward`: (B, 4, ceil(L / 16), N, D)."""
    batch, channels, height, width = u.shape
    return batch, DIRECTIONS, triton.cdiv(height * width, STATE_INTERVAL), A_logs.shape[1], channels


def _kernel_arguments(x_dbl, dt_weight, dt_bias, A_logs, Ds) -> tuple[Tensor, ...]:
    return x_dbl, dt_weight.contiguous(), dt_bias.contiguous(), A_logs.contiguous(), Ds.contiguous()


def forward(
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    out_dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """Returns the output, (B, D, H, W) in the memory format of u, and the states saved for `backward` if `save`.

    The arguments are those of `mtlkit.ops.ss2d`; the caller checks them.

    Raises:
        TypeError: the dtype of an input is not float32, bfloat16 or float16.
    """
    check_dtypes("ss2d", u, x_dbl, dt_weight, dt_bias, A_logs, Ds)
    y = torch.empty_like(u, dtype=out_dtype)
    kept = checkpoint_shape(u, A_logs)
    checkpoints = torch.empty(kept if save else (*kept[:2], 0, *kept[3:]), dtype=torch.float32, device=u.device)
    if u.shape[0] == 0:
        return y, checkpoints
    with on_device(u):
        plan = _Plan("forward", u, x_dbl, dt_weight, A_logs)
        inputs = _kernel_arguments(x_dbl, dt_weight, dt_bias, A_logs, Ds)
        starts = plan.starts(u, *inputs[:4], adjoint=False)
        maps = torch.empty(2, plan.B, plan.H, plan.W, plan.D, dtype=torch.float32, device=u.device)
        ss2d_fwd_kernel[plan.grid](
            u, *inputs, maps, starts, checkpoints,
            plan.B, plan.D, plan.H, plan.W, plan.L, plan.chunks, plan.chunk_blocks,
            *plan.divisions, *u.stride(), *x_dbl.stride(),
            SAVE=save, **plan.constants(),
        )  # fmt: skip
        torch.add(maps[0], maps[1], out=y.permute(0, 2, 3, 1))
    return y, checkpoints


def backward(
    dy: Tensor,
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    checkpoints: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Returns the gradients of u, x_dbl, dt_weight, dt_bias, A_logs and Ds, each in the dtype and layout of its tensor.

    Raises:
        TypeError: the dtype of an input is not float32, bfloat16 or float16.
    """
    check_dtypes("ss2d", dy, u, x_dbl, dt_weight, dt_bias, A_logs, Ds)
    tensors = (u, x_dbl, dt_weight, dt_bias, A_logs, Ds)
    if u.shape[0] == 0:
        return tuple(torch.zeros_like(t) for t in tensors)
    with on_device(u):
        plan = _Plan("backward", u, x_dbl, dt_weight, A_logs, dy)
        inputs = _kernel_arguments(x_dbl, dt_weight, dt_bias, A_logs, Ds)
        starts = plan.starts(dy, *inputs[:4], adjoint=True)
        B, D, N, R = plan.B, plan.D, plan.N, plan.R

        def new(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=u.device)

        maps = new(2, B, plan.H, plan.W, D)
        blocks = triton.cdiv(D, plan.tiles.channels)
        dx_dbl = new(blocks, B, plan.H, plan.W, DIRECTIONS, R + 2 * N)
        parts = B * plan.chunks
        ddt_weight, dA_logs = new(parts, DIRECTIONS, R, D), new(parts, DIRECTIONS, N, D)
        ddt_bias, dDs = new(parts, DIRECTIONS, D), new(parts, DIRECTIONS, D)
        ss2d_bwd_kernel[plan.grid](
            dy, u, *inputs, checkpoints, starts, maps, dx_dbl, ddt_weight, ddt_bias, dA_logs, dDs,
            B, D, plan.H, plan.W, plan.L, plan.chunks, plan.chunk_blocks,
            *plan.divisions, *dy.stride(), *u.stride(), *x_dbl.stride(),
            **plan.constants(),
        )  # fmt: skip
        du = torch.empty_like(u)
        torch.add(maps[0], maps[1], out=du.permute(0, 2, 3, 1))
        return (
            du,
            like(dx_dbl.sum(0).permute(0, 3, 4, 1, 2), x_dbl),
            like(ddt_weight.sum(0).transpose(1, 2), dt_weight),
            like(ddt_bias.sum(0), dt_bias),
            like(dA_logs.sum(0).transpose(1, 2).flatten(0, 1), A_logs),
            like(dDs.sum(0).flatten(), Ds),
        )
