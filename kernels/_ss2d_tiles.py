"""The tiles of ss2d that forward and backward load: a program's part, and its loads for a step."""

import triton
import triton.language as tl

from mtlkit.kernels._scan import LOG2_E, along, over_lanes, settled, softplus, take, walk


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
def decays(A_logs, pair, d, D, N: tl.constexpr, S: tl.constexpr, G: tl.constexpr):
    """A log2(e), [S, 2, BC, G, BD]; n; and which states exist."""
    k = (pair + 2 * tl.arange(0, 2))[None, :, None, None, None]
    n = (tl.arange(0, S)[:, None] + S * tl.arange(0, G)[None, :])[:, None, None, :, None]
    d5 = d[None, None, :, None, :]
    row = k.to(tl.int64) * D + d5  # [1, 2, BC, 1, BD]
    inside = (n < N) & (d5 < D)  # [S, 1, BC, G, BD]
    logs = tl.load(A_logs + row * N + n, mask=inside, other=0.0).to(tl.float32)
    return settled(-tl.exp(logs) * LOG2_E), n, inside


@triton.jit
def lines(pair, H, W, stride_h, stride_w, WIDE: tl.constexpr):
    """(bend, step) for `walk` over an image in the order of the pair: row by row for 0, column by column for 1."""
    pixels = tl.where(pair == 0, W, H)  # per line
    to_next_line = tl.where(pair == 0, stride_h, stride_w)
    step = tl.where(pair == 0, stride_w, stride_h)
    if WIDE:
        to_next_line, step = to_next_line.to(tl.int64), step.to(tl.int64)
    # Lines of one pixel: `walk` treats all as one line, because `division` does not support a divisor of 1.
    return to_next_line - pixels * step, tl.where(pixels == 1, to_next_line, step)


@triton.jit
def positions(j, first, count, T: tl.constexpr):
    """Positions of step j in the order of the pair, [T, 2]; those not `within` L have no token."""
    up = tl.arange(0, 2)[None, :] == 0
    i = tl.arange(0, T)[:, None]
    start = tl.where(up, first * T + i, (first + count) * T - 1 - i)
    return start + tl.where(up, T, -T) * j


@triton.jit
def within(position, end):
    """Whether 0 <= position < end, in one comparison."""
    return position.to(tl.uint32) < end


@triton.jit
def time_steps(dts, weight, bias, inside, R: tl.constexpr):
    """Time steps before and after softplus, [T, 2, BC, BD], from dts [RP, T, 2] and weight [RP, 2, BC, BD].

    1 for padding: u is 0 there, and the state, which is 0 or no longer used, stays finite.
    """
    raw = bias[None]
    products = dts[:, :, :, None, None] * weight[:, None]
    for r in tl.static_range(R):
        raw += take(products, r)
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
def rows(px, inside, sx_m, R: tl.constexpr, RP: tl.constexpr, WIDE: tl.constexpr):
    """The time step's rows of x_dbl at a step's tokens, [RP, T, 2]."""
    r = tl.arange(0, RP)[:, None, None]
    return tl.load(px[None] + along(r, sx_m, WIDE), mask=(r < R) & inside[None], other=0.0)


@triton.jit
def matrix(px, row, inside, sx_m, N: tl.constexpr, S: tl.constexpr, G: tl.constexpr, WIDE: tl.constexpr):
    """B or C, the rows of x_dbl from `row` on, at a step's tokens: [G, T, 2, S], with one token per thread."""
    n = (tl.arange(0, S)[None, :] + S * tl.arange(0, G)[:, None])[:, None, None, :]
    there = (n < N) & inside[None, :, :, None]
    return tl.load(px[None, :, :, None] + along(row + n, sx_m, WIDE), mask=there, other=0.0)


@triton.jit
def on_lanes(m, BC: tl.constexpr, BD: tl.constexpr):
    """A matrix [G, T, 2, S] in the layout of the states, [T, S, 2, BC, G, BD]."""
    m = tl.permute(m.to(tl.float32), (1, 3, 2, 0))
    return tl.broadcast_to(m[:, :, :, None, :, None], [m.shape[0], m.shape[1], 2, BC, m.shape[3], BD])


@triton.jit
def steps_on_lanes(x, y, S: tl.constexpr, G: tl.constexpr):
    """Two tiles [T, 2, BC, BD] in the layout of the states, [T, S, 2, BC, G, BD] each.

    They are joined to change layout together; otherwise Triton would compute the time steps again in the new layout.
    """
    both = tl.permute(tl.join(x, y), (4, 0, 1, 2, 3))[:, :, None, :, :, None, :]
    both = tl.broadcast_to(both, [2, x.shape[0], S, 2, x.shape[2], G, x.shape[3]])
    return take(both, 0), take(both, 1)


@triton.jit
def off_lanes(v, HELD: tl.constexpr):
    """[T, 2, BC, G, BD] summed over the lanes of a channel: [T, 2, BC, BD], laid out as `values`."""
    T: tl.constexpr = v.shape[0]
    BC: tl.constexpr = v.shape[2]
    G: tl.constexpr = v.shape[3]
    BD: tl.constexpr = v.shape[4]
    V: tl.constexpr = T * BD // 32 if HELD and T * BD > 32 else 1
    v = tl.permute(tl.reshape(v, [T, 2, BC, G, BD // V, V]), (3, 5, 0, 1, 2, 4))
    return tl.reshape(tl.permute(over_lanes(v), (1, 2, 3, 4, 0)), [T, 2, BC, BD])


@triton.jit
def channels(p, mask, HELD: tl.constexpr):
    """u, or a gradient, at a step's tokens: [1, T, 2, BC, BD] if HELD, else [T, 2, BC, BD]; `values` makes it one.

    The first axis is that of the time step's rows; it passes the layout of these wide loads on to the time steps.
    """
    if HELD:
        v = tl.load(p[None], mask=mask[None], other=0.0)
    else:
        v = tl.load(p, mask=mask, other=0.0)
    return v


@triton.jit
def values(v, HELD: tl.constexpr):
    """The values that `channels` loaded, [T, 2, BC, BD] in float32."""
    return take(v.to(tl.float32), 0) if HELD else settled(v.to(tl.float32))


@triton.jit
def fetch(
    u, x_dbl, of_d, of_k, position, L, reach, su_bend, su_step, sx_bend, sx_step, sx_m, multiplier, shift,
    R: tl.constexpr, RP: tl.constexpr, HELD: tl.constexpr, N: tl.constexpr, S: tl.constexpr, G: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Tiles of a step as they are stored: u as `channels`, the time step's rows [RP, T, 2], B and C [G, T, 2, S].

    of_d and of_k are the offsets of channels and directions, [1, 1, BC, BD] and [1, 2].
    """
    inside = within(position, L)
    at = walk(position, su_bend, su_step, multiplier, shift, WIDE)[:, :, None, None] + of_d
    uu = channels(u + at, within(position[:, :, None, None], reach), HELD)
    px = x_dbl + (walk(position, sx_bend, sx_step, multiplier, shift, WIDE) + of_k)
    b = matrix(px, R, inside, sx_m, N, S, G, WIDE)
    c = matrix(px, R + N, inside, sx_m, N, S, G, WIDE)
    return uu, rows(px, inside, sx_m, R, RP, WIDE), b, c
