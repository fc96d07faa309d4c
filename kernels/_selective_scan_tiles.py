"""The tiles that the kernels of selective_scan load: T steps of a block of channels, [T, BC, BD].

Step i of a group of channels visits token table[i], or token i without a table.
"""

import triton
import triton.language as tl

from mtlkit.kernels._scan import along, over_channels, over_lanes, softplus, take


@triton.jit
def share(D, groups, chunks, BC: tl.constexpr, BD: tl.constexpr):
    """This program's block of the group, group, chunk and sequence; then its channels, [BC, BD], in three forms.

    These are the indices within the group, whether the channels exist, and the indices among all D.
    """
    pid = tl.program_id(0)
    of_group = D // groups
    blocks = tl.cdiv(of_group, BC * BD)
    block = pid % blocks
    group = pid // blocks % groups
    chunk = pid // (blocks * groups) % chunks
    sequence = (pid // (blocks * groups) // chunks).to(tl.int64)
    lane = block * (BC * BD) + tl.arange(0, BC)[:, None] * BD + tl.arange(0, BD)[None, :]
    return block, group, chunk, sequence, lane, lane < of_group, group * of_group + lane


@triton.jit
def states(d, there, N: tl.constexpr, S: tl.constexpr, G: tl.constexpr):
    """Index n and channel of each state, and whether it exists: [S, BC, G, BD]."""
    n = (tl.arange(0, S)[:, None] + S * tl.arange(0, G)[None, :])[:, None, :, None]
    return n, d[None, :, None, :], (n < N) & there[None, :, None, :]


@triton.jit
def place(token, lane, stride_d, stride_l, WIDE: tl.constexpr):
    """Offsets of the group's channels at their tokens, [T, BC, BD], from the group's first channel."""
    return along(token, stride_l, WIDE)[:, None, None] + along(lane, stride_d, WIDE)[None]


@triton.jit
def visited(table, position, inside):
    """The tokens at these steps, [T]; `table` is the group's."""
    token = position
    if table is not None:
        token = tl.load(table + position, mask=inside, other=0)
    return token


@triton.jit
def begins(seq_idx, table, position, token, inside, BC: tl.constexpr, G: tl.constexpr, BD: tl.constexpr):
    """1 if a token's sequence differs from that of the previously visited token, else 0: [T, 1, BC, G, BD].

    The first token never begins one.
    """
    T: tl.constexpr = token.shape[0]
    new = tl.zeros([T, 1, BC, G, BD], tl.float32)
    if seq_idx is not None:
        earlier = visited(table, tl.maximum(position - 1, 0), inside)
        differs = tl.load(seq_idx + token, mask=inside, other=0) != tl.load(seq_idx + earlier, mask=inside, other=0)
        new = tl.broadcast_to(differs.to(tl.float32)[:, None, None, None, None], [T, 1, BC, G, BD])
    return new


@triton.jit
def per_channel(v, d, there):
    """A vector over the channels, [BC, BD]; zeros if None."""
    value = tl.zeros(d.shape, tl.float32)
    if v is not None:
        value = tl.load(v + d, mask=there, other=0.0).to(tl.float32)
    return value


@triton.jit
def time_steps(delta, bias, inside, SOFTPLUS: tl.constexpr):
    """Time steps before and after softplus, [T, BC, BD]; 0 for padding."""
    raw = delta.to(tl.float32) + bias[None]
    dt = softplus(raw) if SOFTPLUS else raw
    return raw, tl.where(inside[:, None, None], dt, 0.0)


@triton.jit
def cut(x, new, t, RESETS: tl.constexpr):
    """Replaces values that would cross into another sequence at token t by zeros; they may be infinite."""
    if RESETS:
        x = tl.where(take(new, t) > 0.0, 0.0, x)
    return x


@triton.jit
def matrix(
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
def off_lanes(v):
    """[T, BC, G, BD] summed over the lanes of a channel: [T, BC, BD]."""
    T: tl.constexpr = v.shape[0]
    BC: tl.constexpr = v.shape[1]
    G: tl.constexpr = v.shape[2]
    BD: tl.constexpr = v.shape[3]
    if G == 4:  # two tokens per thread, the layout of wide loads of 16 states
        v = tl.permute(tl.reshape(v, [T // 2, 2, BC, G, BD]), (3, 1, 2, 4, 0))
        total = tl.reshape(tl.permute(over_lanes(v), (3, 0, 1, 2)), [T, BC, BD])
    else:
        total = over_lanes(tl.permute(v, (2, 0, 1, 3)))
    return total


@triton.jit
def off_channels(v):
    """[T, S, BC, G, BD] summed over the channels: [T, G, S], so that neighbouring threads have neighbouring states."""
    T: tl.constexpr = v.shape[0]
    S: tl.constexpr = v.shape[1]
    G: tl.constexpr = v.shape[3]
    return tl.reshape(over_channels(tl.permute(v, (2, 4, 0, 3, 1)), T * S * G), [T, G, S])
