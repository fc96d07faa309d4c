r"""The 1-D selective scan in Triton, forward and backward: formula and letters as in mtlkit/operators/selective_scan.

A program owns a block of channels of one sequence and one group, or of a chunk of its tokens. Splits, kept states,
partial sums and their fixed orders are those of ss2d.py.
"""

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
    over_channels,
    over_lanes,
    put,
    settled,
    sigmoid,
    softplus,
    softplus_slope,
    take,
)
from mtlkit.kernels.tables import STATE_INTERVAL, scan_tiles, split

# --- tiles that forward and backward load -----------------------------------------------------------------------------


@triton.jit
def _share(D, groups, chunks, BC: tl.constexpr, BD: tl.constexpr):
    """This program's block of the group, group, chunk and sequence; its channels and which are there, [BC, BD]."""
    pid = tl.program_id(0)
    of_group = D // groups
    blocks = tl.cdiv(of_group, BC * BD)
    block = pid % blocks
    group = pid // blocks % groups
    chunk = pid // (blocks * groups) % chunks
    sequence = (pid // (blocks * groups) // chunks).to(tl.int64)
    lane = block * (BC * BD) + tl.arange(0, BC)[:, None] * BD + tl.arange(0, BD)[None, :]
    return block, group, chunk, sequence, group * of_group + lane, lane < of_group


@triton.jit
def _states(d, there, N: tl.constexpr, S: tl.constexpr, G: tl.constexpr):
    """n, channel and whether they are there, of each state: [S, BC, G, BD]."""
    n = (tl.arange(0, S)[:, None] + S * tl.arange(0, G)[None, :])[:, None, :, None]
    return n, d[None, :, None, :], (n < N) & there[None, :, None, :]


@triton.jit
def _place(token, d, stride_d, stride_l, WIDE: tl.constexpr):
    """Where channels lie at their tokens, [T, BC, BD], from the start of the sequence."""
    return along(token, stride_l, WIDE)[:, None, None] + along(d, stride_d, WIDE)[None]


@triton.jit
def _per_channel(v, d, there):
    """A vector over the channels, [BC, BD]; zeros if None."""
    value = tl.zeros(d.shape, tl.float32)
    if v is not None:
        value = tl.load(v + d, mask=there, other=0.0).to(tl.float32)
    return value


@triton.jit
def _time_steps(delta, bias, inside, SOFTPLUS: tl.constexpr):
    """Time steps before and after softplus, [T, BC, BD]; 0 where no token is."""
    raw = delta.to(tl.float32) + bias[None]
    dt = softplus(raw) if SOFTPLUS else raw
    return raw, tl.where(inside[:, None, None], dt, 0.0)


@triton.jit
def _matrix(
    m, sequence, group, token, inside, d5, n5, there5, sm_b, sm_g, sm_n, sm_l,
    VARIES: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """B or C at T tokens, [T, S, BC, G, BD]; constant ones are (D, N) with the strides sm_b and sm_n."""
    S: tl.constexpr = n5.shape[0]
    G: tl.constexpr = n5.shape[2]
    if VARIES:
        n = (tl.arange(0, S)[:, None] + S * tl.arange(0, G)[None, :])[None]
        pm = m + sequence * sm_b + group.to(tl.int64) * sm_g + n * sm_n + along(token, sm_l, WIDE)[:, None, None]
        value = tl.load(pm, mask=(n < N) & inside[:, None, None], other=0.0).to(tl.float32)[:, :, None, :, None]
    else:
        value = tl.load(m + d5 * sm_b + n5 * sm_n, mask=there5, other=0.0).to(tl.float32)[None]
    return tl.broadcast_to(value, [token.shape[0], S, d5.shape[1], G, d5.shape[3]])


@triton.jit
def _off_lanes(v):
    """[T, BC, G, BD] summed over the lanes of a channel: [T, BC, BD]."""
    T: tl.constexpr = v.shape[0]
    BC: tl.constexpr = v.shape[1]
    G: tl.constexpr = v.shape[2]
    BD: tl.constexpr = v.shape[3]
    if G == 4:  # two tokens of a thread side by side, as wide loads of 16 states have them
        v = tl.permute(tl.reshape(v, [T // 2, 2, BC, G, BD]), (3, 1, 2, 4, 0))
        total = tl.reshape(tl.permute(over_lanes(v), (3, 0, 1, 2)), [T, BC, BD])
    else:
        total = over_lanes(tl.permute(v, (2, 0, 1, 3)))
    return total


# --- the states alone, for split scans --------------------------------------------------------------------------------


@triton.jit
def selective_scan_states_kernel(
    v, delta, A, m, z, delta_bias, ends, steps,
    D, groups, L, chunks, chunk_blocks,
    sv_b, sv_d, sv_l, st_b, st_d, st_l, sm_b, sm_g, sm_n, sm_l, sz_b, sz_d, sz_l,
    N: tl.constexpr, VARIES: tl.constexpr, SOFTPLUS: tl.constexpr, ADJOINT: tl.constexpr, WIDE: tl.constexpr,
    T: tl.constexpr, S: tl.constexpr, G: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """A chunk's last state from a zero start, and the sum of its time steps.

    The state is h, with v = u and m = B; if ADJOINT, what the later tokens hand to the chunk's first, with v = dout and
    m = C.
    """
    _block, group, chunk, sequence, d, there = _share(D, groups, chunks, BC, BD)
    n5, d5, there5 = _states(d, there, N, S, G)
    a = settled(decay_rate(tl.load(A + d5 * N + n5, mask=there5, other=0.0).to(tl.float32)))
    bias = _per_channel(delta_bias, d, there)
    wide = d.to(tl.int64)[None]
    first = chunk * chunk_blocks
    count = tl.minimum(chunk_blocks, tl.cdiv(L, T) - first)
    h = tl.zeros([S, BC, G, BD], tl.float32)
    total = tl.zeros([T, BC, BD], tl.float32)
    for j in range(count):
        token = (first + (count - 1 - j if ADJOINT else j)) * T + tl.arange(0, T)
        inside = token < L
        mask = inside[:, None, None] & there[None]
        pv = v + sequence * sv_b + wide * sv_d + along(token, sv_l, WIDE)[:, None, None]
        pt = delta + sequence * st_b + wide * st_d + along(token, st_l, WIDE)[:, None, None]
        driven = tl.load(pv, mask=mask, other=0.0).to(tl.float32)
        _, dt = _time_steps(tl.load(pt, mask=mask, other=0.0), bias, inside, SOFTPLUS)
        total += dt
        if ADJOINT:
            if z is not None:
                pz = z + sequence * sz_b + wide * sz_d + along(token, sz_l, WIDE)[:, None, None]
                gate = tl.load(pz, mask=mask, other=0.0).to(tl.float32)
                driven *= gate * sigmoid(gate)
        else:
            driven *= dt
        matrix = _matrix(m, sequence, group, token, inside, d5, n5, there5, sm_b, sm_g, sm_n, sm_l, VARIES, N, WIDE)
        decay = tl.exp2(dt[:, None, :, None, :] * a[None])  # [T, S, BC, G, BD]
        fed = driven[:, None, :, None, :] * matrix
        for i in tl.static_range(T):
            if ADJOINT:
                h = take(decay, T - 1 - i) * (h + take(fed, T - 1 - i))
            else:
                h = take(decay, i) * h + take(fed, i)
    slot = sequence * chunks + chunk
    tl.store(ends + (slot * N + n5) * D + d5, h, mask=there5)
    tl.store(steps + slot * D + d, tl.sum(total, 0), mask=there)


# --- forward ----------------------------------------------------------------------------------------------------------


@triton.jit
def selective_scan_fwd_kernel(
    u, delta, A, B, C, Dskip, z, delta_bias, out, last_state, starts, checkpoints,
    D, groups, L, chunks, chunk_blocks,
    su_b, su_d, su_l, st_b, st_d, st_l, sB_b, sB_g, sB_n, sB_l, sC_b, sC_g, sC_n, sC_l, sz_b, sz_d, sz_l,
    so_b, so_d, so_l,
    N: tl.constexpr, B_VARIES: tl.constexpr, C_VARIES: tl.constexpr, SOFTPLUS: tl.constexpr, SAVE: tl.constexpr,
    WIDE: tl.constexpr,
    T: tl.constexpr, S: tl.constexpr, G: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes out, and the last state unless a split has it from its chain."""
    _block, group, chunk, sequence, d, there = _share(D, groups, chunks, BC, BD)
    n5, d5, there5 = _states(d, there, N, S, G)
    a = settled(decay_rate(tl.load(A + d5 * N + n5, mask=there5, other=0.0).to(tl.float32)))
    bias = _per_channel(delta_bias, d, there)
    skip = _per_channel(Dskip, d, there)
    wide = d.to(tl.int64)[None]
    u += sequence * su_b + wide * su_d
    delta += sequence * st_b + wide * st_d
    out += sequence * so_b + wide * so_d
    first = chunk * chunk_blocks
    EVERY: tl.constexpr = INTERVAL // T
    rounds = tl.cdiv(tl.minimum(chunk_blocks, tl.cdiv(L, T) - first), EVERY)
    if starts is not None:
        h = settled(tl.load(starts + ((sequence * chunks + chunk) * N + n5) * D + d5, mask=there5, other=0.0))
    else:
        h = tl.zeros([S, BC, G, BD], tl.float32)
    token = first * T + tl.arange(0, T)
    mask = (token < L)[:, None, None] & there[None]
    u_ = tl.load(u + along(token, su_l, WIDE)[:, None, None], mask=mask, other=0.0)
    delta_ = tl.load(delta + along(token, st_l, WIDE)[:, None, None], mask=mask, other=0.0)
    kept = checkpoints + ((sequence * tl.cdiv(L, INTERVAL) + first // EVERY) * N + n5) * D + d5
    for _round in range(rounds):  # a name of its own: Triton 3.2 carries `_` through the loop
        if SAVE:
            tl.store(kept, h, mask=there5)
            kept += N * D
        for _step in tl.static_range(EVERY):
            inside = token < L
            mask = inside[:, None, None] & there[None]
            uu = u_.to(tl.float32)
            _, dt = _time_steps(delta_, bias, inside, SOFTPLUS)
            ahead = token + T
            mask_ahead = (ahead < L)[:, None, None] & there[None]
            u_ = tl.load(u + along(ahead, su_l, WIDE)[:, None, None], mask=mask_ahead, other=0.0)
            delta_ = tl.load(delta + along(ahead, st_l, WIDE)[:, None, None], mask=mask_ahead, other=0.0)
            b6 = _matrix(B, sequence, group, token, inside, d5, n5, there5, sB_b, sB_g, sB_n, sB_l, B_VARIES, N, WIDE)
            c6 = _matrix(C, sequence, group, token, inside, d5, n5, there5, sC_b, sC_g, sC_n, sC_l, C_VARIES, N, WIDE)
            decay = tl.exp2(dt[:, None, :, None, :] * a[None])  # [T, S, BC, G, BD]
            fed = (dt * uu)[:, None, :, None, :] * b6
            y6 = tl.zeros([T, BC, G, BD], tl.float32)
            for i in tl.static_range(T):
                h = take(decay, i) * h + take(fed, i)
                y6 = put(y6, i, add_up(h * take(c6, i)))
            y = _off_lanes(y6) + skip[None] * uu
            if z is not None:
                pz = z + sequence * sz_b + wide * sz_d + along(token, sz_l, WIDE)[:, None, None]
                gate = tl.load(pz, mask=mask, other=0.0).to(tl.float32)
                y *= gate * sigmoid(gate)
            tl.store(out + along(token, so_l, WIDE)[:, None, None], y.to(out.dtype.element_ty), mask=mask)
            token = ahead
    if last_state is not None:
        tl.store(last_state + (sequence * D + d5) * N + n5, h, mask=there5)


# --- backward ---------------------------------------------------------------------------------------------------------


@triton.jit
def selective_scan_bwd_kernel(
    dout, dlast_state, u, delta, A, B, C, Dskip, z, delta_bias, checkpoints, starts,
    du, ddelta, dz, dA, dB, dC, dD, ddelta_bias,
    batch, D, groups, L, chunks, chunk_blocks,
    sg_b, sg_d, sg_l, su_b, su_d, su_l, st_b, st_d, st_l, sB_b, sB_g, sB_n, sB_l, sC_b, sC_g, sC_n, sC_l,
    sz_b, sz_d, sz_l, sdu_b, sdu_d, sdu_l, sdt_b, sdt_d, sdt_l, sdz_b, sdz_d, sdz_l,
    N: tl.constexpr, B_VARIES: tl.constexpr, C_VARIES: tl.constexpr, SOFTPLUS: tl.constexpr, WIDE: tl.constexpr,
    T: tl.constexpr, S: tl.constexpr, G: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Formulas as those of ss2d_bwd_kernel, with dy = dout SiLU(z) and dz = dout y SiLU'(z).

    Writes du, ddelta and dz, and one partial sum a program of the others: dA (B chunks, N, D), dD and ddelta_bias
    (B chunks, D); dB and dC (blocks of a group, B, groups, L, N) where they vary, else as dA.
    """
    EVERY: tl.constexpr = INTERVAL // T
    block, group, chunk, sequence, d, there = _share(D, groups, chunks, BC, BD)
    n5, d5, there5 = _states(d, there, N, S, G)
    a = settled(decay_rate(tl.load(A + d5 * N + n5, mask=there5, other=0.0).to(tl.float32)))
    bias = _per_channel(delta_bias, d, there)
    skip = _per_channel(Dskip, d, there)
    dout += sequence * sg_b
    u += sequence * su_b
    delta += sequence * st_b
    du += sequence * sdu_b
    ddelta += sequence * sdt_b
    first = chunk * chunk_blocks
    count = tl.minimum(chunk_blocks, tl.cdiv(L, T) - first)
    rounds = tl.cdiv(count, EVERY)
    rows = ((block.to(tl.int64) * batch + sequence) * groups + group) * L
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
        begins = tl.zeros([EVERY, S, BC, G, BD], tl.float32)
        for s in range(EVERY - 1):
            begins = put(begins, s, h)
            token = (start + s) * T + tl.arange(0, T)
            inside = token < L
            mask = inside[:, None, None] & there[None]
            uu = tl.load(u + _place(token, d, su_d, su_l, WIDE), mask=mask, other=0.0).to(tl.float32)
            steps = tl.load(delta + _place(token, d, st_d, st_l, WIDE), mask=mask, other=0.0)
            _, dt = _time_steps(steps, bias, inside, SOFTPLUS)
            b6 = _matrix(B, sequence, group, token, inside, d5, n5, there5, sB_b, sB_g, sB_n, sB_l, B_VARIES, N, WIDE)
            decay = tl.exp2(dt[:, None, :, None, :] * a[None])
            fed = (dt * uu)[:, None, :, None, :] * b6
            for i in tl.static_range(T):
                h = take(decay, i) * h + take(fed, i)
        begins = put(begins, EVERY - 1, h)

        for s in range(EVERY):
            h = take(begins, EVERY - 1 - s)
            token = (start + EVERY - 1 - s) * T + tl.arange(0, T)
            inside = token < L
            mask = inside[:, None, None] & there[None]
            uu = tl.load(u + _place(token, d, su_d, su_l, WIDE), mask=mask, other=0.0).to(tl.float32)
            steps = tl.load(delta + _place(token, d, st_d, st_l, WIDE), mask=mask, other=0.0)
            gg = tl.load(dout + _place(token, d, sg_d, sg_l, WIDE), mask=mask, other=0.0).to(tl.float32)
            raw, dt = _time_steps(steps, bias, inside, SOFTPLUS)
            if z is not None:
                pz = z + sequence * sz_b + _place(token, d, sz_d, sz_l, WIDE)
                gate = tl.load(pz, mask=mask, other=0.0).to(tl.float32)
                opened = sigmoid(gate)
                dgate = gg * opened * (1.0 + gate * (1.0 - opened))
                gg *= gate * opened
            b6 = _matrix(B, sequence, group, token, inside, d5, n5, there5, sB_b, sB_g, sB_n, sB_l, B_VARIES, N, WIDE)
            c6 = _matrix(C, sequence, group, token, inside, d5, n5, there5, sC_b, sC_g, sC_n, sC_l, C_VARIES, N, WIDE)
            dt6 = tl.broadcast_to(dt[:, None, :, None, :], [T, S, BC, G, BD])
            x6 = tl.broadcast_to((dt * uu)[:, None, :, None, :], [T, S, BC, G, BD])
            g6 = tl.broadcast_to(gg[:, None, :, None, :], [T, S, BC, G, BD])
            decay = tl.exp2(dt6 * a[None])
            before = tl.zeros([T, S, BC, G, BD], tl.float32)  # P
            gradient = tl.zeros([T, S, BC, G, BD], tl.float32)  # of C, channel by channel
            y6 = tl.zeros([T, BC, G, BD], tl.float32)
            for i in tl.static_range(T):
                decayed = take(decay, i) * h
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
                tl.store(dC + row, _over_channels(gradient), mask=there_n)
            if z is not None:
                pdz = dz + sequence * sdz_b + _place(token, d, sdz_d, sdz_l, WIDE)
                y = _off_lanes(y6) + skip[None] * uu
                tl.store(pdz, (dgate * y).to(dz.dtype.element_ty), mask=mask)

            # Read again, from L1: registers are short, and the pass back over the tokens is the only use.
            b6 = _matrix(B, sequence, group, token, inside, d5, n5, there5, sB_b, sB_g, sB_n, sB_l, B_VARIES, N, WIDE)
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
                carry = g * take(decay, t)
            if B_VARIES:
                tl.store(dB + row, _over_channels(gradient), mask=there_n)

            dfed = _off_lanes(dfed)  # [T, BC, BD]
            draw = _off_lanes(ddt) * LN_2 + uu * dfed
            if SOFTPLUS:
                draw *= softplus_slope(raw, dt)
            sum_raw += tl.where(inside[:, None, None], draw, 0.0)  # past the end, the state and its gradient live on
            sum_D += gg * uu
            pdu = du + _place(token, d, sdu_d, sdu_l, WIDE)
            tl.store(pdu, (dt * dfed + skip[None] * gg).to(du.dtype.element_ty), mask=mask)
            pdt = ddelta + _place(token, d, sdt_d, sdt_l, WIDE)
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


@triton.jit
def _over_channels(v):
    """[T, S, BC, G, BD] to [T, G, S], so that neighbouring threads have neighbouring states."""
    T: tl.constexpr = v.shape[0]
    S: tl.constexpr = v.shape[1]
    G: tl.constexpr = v.shape[3]
    return tl.reshape(over_channels(tl.permute(v, (2, 4, 0, 3, 1)), T * S * G), [T, G, S])


# --- launch -----------------------------------------------------------------------------------------------------------


class _Plan:
    """Sizes and tiles of a call."""

    def __init__(self, kind: str, u: Tensor, A: Tensor, B: Tensor, C: Tensor, *others: Tensor | None) -> None:
        self.B, self.D, self.L = u.shape
        self.N = A.shape[1]
        self.groups = B.shape[1] if B.dim() == 4 else C.shape[1] if C.dim() == 4 else 1
        self.tiles = scan_tiles(kind, self.N, self.D // self.groups, self.B * self.groups, 1, processors(u))
        self.blocks = triton.cdiv(self.D // self.groups, self.tiles.channels)
        programs = self.B * self.groups * self.blocks
        blocks = triton.cdiv(self.L, self.tiles.T)
        every = STATE_INTERVAL // self.tiles.T
        chunks = split(programs * self.tiles.num_warps, self.L, processors(u))
        self.chunk_blocks = triton.cdiv(triton.cdiv(blocks, chunks), every) * every
        self.chunks = triton.cdiv(blocks, self.chunk_blocks)
        self.grid = (programs * self.chunks,)
        self.wide = is_wide(*(t for t in (u, B, C, *others) if t is not None and t.dim() > 2))

    def sizes(self) -> tuple[int, ...]:
        return self.D, self.groups, self.L, self.chunks, self.chunk_blocks

    def constants(self) -> dict:
        return {"N": self.N, "WIDE": self.wide, **self.tiles._asdict(), "num_stages": 1, "enable_fp_fusion": True}

    def starts(self, v, delta, A, m, z, delta_bias, delta_softplus, adjoint, initial, last) -> Tensor | None:
        """Each chunk's state at its start, (B, 1, chunks, N, D); None where there is but one chunk."""
        if self.chunks == 1:
            return None
        states = torch.empty(self.B, 1, self.chunks, self.N, self.D, dtype=torch.float32, device=v.device)
        steps = torch.empty(self.B, 1, self.chunks, self.D, dtype=torch.float32, device=v.device)
        selective_scan_states_kernel[self.grid](
            v, delta, A, m, z, delta_bias, states, steps, *self.sizes(),
            *v.stride(), *delta.stride(), *_matrix_strides(m), *_strides(z),
            VARIES=m.dim() > 2, SOFTPLUS=delta_softplus, ADJOINT=adjoint, **self.constants(),
        )  # fmt: skip
        chain_kernel[(self.B * triton.cdiv(self.N * self.D, CHAIN_BLOCK),)](
            states, steps, A, initial, last, self.D, self.chunks, 1, self.N, False, adjoint, CHAIN_BLOCK, num_warps=4
        )
        return states


def _matrix_strides(m: Tensor) -> tuple[int, int, int, int]:
    """Of sequence, group, state and token; a constant matrix has its channels' in the first place."""
    if m.dim() == 2:
        return m.stride(0), 0, m.stride(1), 0
    return m[:, None].stride() if m.dim() == 3 else m.stride()


def _strides(t: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if t is None else t.stride()


def _dense(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.contiguous() for t in tensors)


def checkpoint_shape(u: Tensor, A: Tensor) -> tuple[int, ...]:
    """The shape of the states, float32, that `forward` keeps for `backward`: (B, ceil(L / 16), N, D)."""
    batch, channels, length = u.shape
    return batch, triton.cdiv(length, STATE_INTERVAL), A.shape[1], channels


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
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the last state and the states kept for `backward`: none unless `save`.

    The output has the dtype and layout of u, the last state is float32, (B, D, N). Arguments as those of
    `mtlkit.ops.selective_scan`, checked there.

    Raises:
        TypeError: an input of another dtype than float32, bfloat16 and float16.
    """
    check_dtypes("selective_scan", u, delta, A, B, C, D, z, delta_bias)
    out = torch.empty_like(u)
    last = torch.empty(*u.shape[:2], A.shape[1], dtype=torch.float32, device=u.device)
    kept = checkpoint_shape(u, A)
    checkpoints = torch.empty(kept if save else (kept[0], 0, *kept[2:]), dtype=torch.float32, device=u.device)
    if u.shape[0] == 0:
        return out, last, checkpoints
    with on_device(u):
        plan = _Plan("forward", u, A, B, C, delta, z, out)
        A, D, delta_bias = _dense(A, D, delta_bias)
        starts = plan.starts(u, delta, A, B, None, delta_bias, delta_softplus, False, None, last)
        selective_scan_fwd_kernel[plan.grid](
            u, delta, A, B, C, D, z, delta_bias, out, last if starts is None else None, starts, checkpoints,
            *plan.sizes(), *u.stride(), *delta.stride(), *_matrix_strides(B), *_matrix_strides(C), *_strides(z),
            *out.stride(),
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
) -> tuple[Tensor | None, ...]:
    """The gradients of u, delta, A, B, C, D, z and delta_bias, each in the dtype and layout of its tensor.

    `dlast_state`, the gradient of the last state, is taken as zero if None. None comes back for what was not given.

    Raises:
        TypeError: an input of another dtype than float32, bfloat16 and float16.
    """
    check_dtypes("selective_scan", dout, dlast_state, u, delta, A, B, C, D, z, delta_bias)
    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dz = None if z is None else torch.empty_like(z)
    if u.shape[0] == 0:
        zeros = [None if t is None else torch.zeros_like(t) for t in (A, B, C, D, delta_bias)]
        return du, ddelta, *zeros[:4], dz, zeros[4]
    with on_device(u):
        plan = _Plan("backward", u, A, B, C, delta, z, dout, du, ddelta, dz)
        dense_A, dense_D, dense_bias, dlast = _dense(A, D, delta_bias, dlast_state)
        starts = plan.starts(dout, delta, dense_A, C, z, dense_bias, delta_softplus, True, dlast, None)
        parts = plan.B * plan.chunks

        def new(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=u.device)

        def matrix(m: Tensor) -> Tensor:
            if m.dim() == 2:
                return new(parts, plan.N, plan.D)
            return new(plan.blocks, plan.B, plan.groups, plan.L, plan.N)

        dA, dB, dC = new(parts, plan.N, plan.D), matrix(B), matrix(C)
        dD, dbias = new(parts, plan.D), new(parts, plan.D)
        selective_scan_bwd_kernel[plan.grid](
            dout, dlast, u, delta, dense_A, B, C, dense_D, z, dense_bias, checkpoints, starts,
            du, ddelta, dz, dA, dB, dC, dD, dbias,
            plan.B, *plan.sizes(), *dout.stride(), *u.stride(), *delta.stride(),
            *_matrix_strides(B), *_matrix_strides(C), *_strides(z), *du.stride(), *ddelta.stride(), *_strides(dz),
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
