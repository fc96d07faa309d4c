"""Shared by the scan kernels: device functions on tiles, and the arithmetic of walking over an image.

A tile of states is [S, ..., G, BD]: N states as S in a thread's registers times G lanes, and BD channels on the other
lanes, so that a sum over the states takes S consecutive products and log2(G) shuffles. Tiles of T tokens have an
additional first axis of T, also in registers: `take` and `put` along it compile to no instructions.

Three rules keep Triton's layouts that way. Loaded values are broadcast to a tile by added axes of size 1, never by a
reshape; values that a loop carries pass through `settled` after the load; and sums along registers use `add_up`, which
adds one by one, so that each product fuses with its sum.
"""

import triton
import triton.language as tl

from mtlkit.kernels.tables import STATE_INTERVAL

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)
LN_2 = tl.constexpr(0.6931471805599453)
INTERVAL = tl.constexpr(STATE_INTERVAL)
CHAIN_BLOCK = 256  # states per program of chain_kernel


@triton.jit
def _along_first(T: tl.constexpr, RANK: tl.constexpr):
    i = tl.arange(0, T)
    for _ in tl.static_range(RANK - 1):
        i = tl.expand_dims(i, -1)
    return i


@triton.jit
def take(x, t):
    """x[t] along the first axis. An exact copy of the bits, NaN included."""
    i = _along_first(x.shape[0], len(x.shape))
    return tl.sum(tl.where(i == t, x.to(tl.int32, bitcast=True), 0), 0).to(tl.float32, bitcast=True)


@triton.jit
def put(x, t, value):
    """Returns x with x[t] = value along the first axis."""
    return tl.where(_along_first(x.shape[0], len(x.shape)) == t, value[None], x)


@triton.jit
def settled(x):
    """The same value in another layout than that of its load, for a loop to carry."""
    return take(x[None], 0)


@triton.jit
def add_up(x):
    """The sum along the first axis, in order."""
    COUNT: tl.constexpr = x.shape[0]
    if COUNT > 64:
        total = tl.sum(x, 0)
    else:
        total = take(x, 0)
        for i in tl.static_range(1, COUNT):
            total += take(x, i)
    return total


@triton.jit
def softplus(x):
    """log(1 + exp(x)), with a relative error of 2e-7 for every x: max(x, 0) + log1p(w) with w = exp(-|x|) in (0, 1].

    log1p(w) / w is a polynomial, fitted in the relative error; lg2 would lose precision for small values such as time
    steps.
    """
    w = tl.exp2(tl.abs(x) * -LOG2_E)
    p = w * 5.232691299170256e-3 - 2.9505226761102676e-2
    p = p * w + 7.822593301534653e-2
    p = p * w - 1.3663243246436523e-1
    p = p * w + 1.9106006622314453e-1
    p = p * w - 2.484298199415207e-1
    p = p * w + 3.331909775733948e-1
    p = p * w - 4.999949336051941e-1
    p = p * w + 9.999999403953552e-1
    return tl.maximum(x, 0.0) + p * w


@triton.jit
def softplus_slope(x, softplus_x):
    """The derivative of softplus, exp(x - softplus(x)), which stays precise for small values."""
    return tl.where(x > 20.0, 1.0, tl.exp2((x - softplus_x) * LOG2_E))


@triton.jit
def decay_rate(A):
    """A log2(e), kept finite: padding tokens must not change the state, but 0 times infinity is NaN."""
    rate = A * LOG2_E
    return tl.where(rate < LOWEST, LOWEST, rate)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), 0 if exp overflows; a reciprocal square root takes half the instructions of a division."""
    root = tl.rsqrt(1.0 + tl.exp2(x * -LOG2_E))
    return root * root


@triton.jit
def along(index, stride, WIDE: tl.constexpr):
    """The offsets of the elements of an axis, in 64 bits if WIDE.

    Summing offsets before adding the pointer takes fewer registers than a pointer per thread.
    """
    return index.to(tl.int64) * stride if WIDE else index * stride


@triton.jit
def walk(position, bend, step, multiplier, shift, WIDE: tl.constexpr):
    """The offset of a position of a scan order: line * bend + position * step, line = position // (pixels of a line).

    The quotient is exact for positions below 2^31: see `division` in _launch.py.
    """
    wide = position.to(tl.uint32).to(tl.uint64) * multiplier.to(tl.uint32).to(tl.uint64)
    line = (wide >> 32).to(tl.uint32) >> shift.to(tl.uint32)
    if WIDE:
        offset = line.to(tl.int64) * bend + position.to(tl.int64) * step
    else:
        offset = line.to(tl.int32) * bend + position * step
    return offset


@triton.jit
def chain_kernel(
    states, steps, A, initial, last_state, D, chunks,
    DIRECTIONS: tl.constexpr, N: tl.constexpr, LOGS: tl.constexpr, ADJOINT: tl.constexpr, RESETS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Turns each chunk's last state from a zero start into its true initial state, in place.

    states (B, K, chunks, N, D), steps (B, K, chunks, D), the sums of the time steps, A (K D, N), or log(-A) if LOGS.
    The first chunk starts from `initial` (B, D, N), zero if None, and the state after the last chunk is written to
    `last_state`, of the same shape; both only work with one direction. Directions 2 and 3 start at the last chunk, and
    so does the adjoint state of the others. If RESETS, no state crosses a chunk whose steps are -1.
    """
    blocks = tl.cdiv(N * D, BLOCK)
    e = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    walk_index = (tl.program_id(0) // blocks).to(tl.int64)  # image * DIRECTIONS + direction
    k = walk_index % DIRECTIONS
    n, d = e // D, e % D
    inside = e < N * D
    a = tl.load(A + (k * D + d) * N + n, mask=inside, other=0.0).to(tl.float32)
    if LOGS:
        a = -tl.exp(a)
    a *= LOG2_E
    backwards = (k >= 2) != ADJOINT
    end_index = (walk_index * D + d) * N + n
    h = tl.zeros([BLOCK], tl.float32)
    if initial is not None:
        h = tl.load(initial + end_index, mask=inside, other=0.0).to(tl.float32)
    for i in range(chunks):
        chunk = walk_index * chunks + tl.where(backwards, chunks - 1 - i, i)
        end = tl.load(states + chunk * N * D + e, mask=inside, other=0.0)
        total = tl.load(steps + chunk * D + d, mask=inside, other=0.0)
        tl.store(states + chunk * N * D + e, h, mask=inside)
        left = tl.exp2(a * total) * h
        if RESETS:
            left = tl.where(total < 0.0, 0.0, left)
        h = left + end
    if last_state is not None:
        tl.store(last_state + end_index, h, mask=inside)


@triton.jit
def over_channels(v, COLUMNS: tl.constexpr):
    """[BC, BD, ...] summed over the channels, flat: through shared memory, one of COLUMNS per thread.

    That takes a third of the instructions of a sum by shuffles.
    """
    return add_up(tl.reshape(v, [v.shape[0] * v.shape[1], COLUMNS]))


@triton.jit
def over_lanes(v):
    """[G, V, ...] summed over the lanes that share a channel's states: [V, ...], the V of a thread side by side.

    Through shared memory too: a sum by shuffles would give each of the G lanes all sums, in log2(G) shuffles and
    additions for each.
    """
    return tl.sum(settled(v), 0)
