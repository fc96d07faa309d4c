"""The tiles of ss2d that forward and backward load: a program's share, and what it reads for a step."""

import triton
import triton.language as tl

from mtlkit.kernels._scan import LOG2_E, add_up, settled, softplus, walk


@triton.jit
def share(D, chunks, BC: tl.constexpr, BD: tl.constexpr):
    """This program's image, chunk, pair of directions and channels."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(D, BC * BD)
    d = (pid % blocks) * (BC * BD) + tl.arange(0, BC)[:, None] * BD + tl.arange(0, BD)[None, :]  # [BC, BD]
    pair = pid // blocks % 2
    chunk = pid // (blocks * 2) % chunks
    image = (pid // (blocks * 2) // chunks).to(tl.int64)
    return image, chunk, pair, d


@triton.jit
def decays(A_logs, pair, d, D, N: tl.constexpr, S: tl.constexpr, G: tl.constexpr, BC: tl.constexpr, BD: tl.constexpr):
    """A log2(e), [S, 2, BC, G, BD]; n, and which states are there."""
    k = (pair + 2 * tl.arange(0, 2))[None, :, None, None, None]
    n = (tl.arange(0, S)[:, None] + S * tl.arange(0, G)[None, :])[:, None, None, :, None]
    d5 = d[None, None, :, None, :]
    row = k.to(tl.int64) * D + d5  # [1, 2, BC, 1, BD]
    inside = (n < N) & (d5 < D)  # [S, 1, BC, G, BD]
    logs = tl.load(A_logs + row * N + n, mask=inside, other=0.0).to(tl.float32)
    return settled(-tl.exp(logs) * LOG2_E), n, inside


@triton.jit
def positions(j, first, count, L, T: tl.constexpr):
    """Positions of step j in the order of the pair, and which are there: [T, 2]."""
    kk = tl.arange(0, 2)
    i = tl.arange(0, T)[:, None]
    block = tl.where(kk == 0, first + j, first + count - 1 - j)[None, :]
    position = block * T + tl.where(kk[None, :] == 0, i, T - 1 - i)
    return position, position < tl.where(j < count, L, -T)


@triton.jit
def time_steps(dts, weight, bias, inside, R: tl.constexpr, RP: tl.constexpr):
    """Time steps before and after softplus, [T, 2, BC, BD], from dts [RP, T, 2] and weight [RP, 2, BC, BD].

    1 where no token is: u is 0 there, and the state, which is 0 too or not used any more, stays finite.
    """
    raw = bias[None] + add_up(dts[:, :, :, None, None] * weight[:, None], R, RP)
    return raw, tl.where(inside[:, :, None, None], softplus(raw), 1.0)


@triton.jit
def projection(dt_weight, dt_bias, k, d, D, R: tl.constexpr, RP: tl.constexpr):
    """Weight [RP, 2, BC, BD] and bias [2, BC, BD] of the time steps."""
    row = k.to(tl.int64)[:, None, None] * D + d[None]
    r = tl.arange(0, RP)[:, None, None, None]
    there = (d < D)[None]
    weight = tl.load(dt_weight + row[None] * R + r, mask=(r < R) & there[None], other=0.0).to(tl.float32)
    bias = tl.load(dt_bias + row, mask=there, other=0.0).to(tl.float32)
    return weight, bias


@triton.jit
def fetch(
    u, x, position, inside, there, su_bend, su_step, sx_bend, sx_step, sx_m, multiplier, shift, r, n,
    R: tl.constexpr, N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Tiles of a step as they are stored: u [T, 2, BC, BD], the time step's rows [RP, T, 2], B and C [T, S, 2, G]."""
    pu = u + walk(position, su_bend, su_step, multiplier, shift, WIDE)[:, :, None, None]
    px = x + walk(position, sx_bend, sx_step, multiplier, shift, WIDE)
    uu = tl.load(pu, mask=inside[:, :, None, None] & there, other=0.0)
    dts = tl.load(px[None] + r * sx_m, mask=(r < R) & inside[None], other=0.0)
    pn = px[:, None, :, None] + (R + n) * sx_m
    mask = (n < N) & inside[:, None, :, None]
    b = tl.load(pn, mask=mask, other=0.0)
    c = tl.load(pn + N * sx_m, mask=mask, other=0.0)
    return uu, dts, b, c
