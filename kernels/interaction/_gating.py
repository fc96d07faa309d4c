"""Shared by the gating kernels: parts of a program, and the layout of saved tensors.

BB is B, the images, padded to a power of two; matrices are (images, entries) and contiguous.
"""

import triton
import triton.language as tl
from torch import Tensor

from mtlkit.kernels.tables import power_of_two

SIDE = 16  # rows or columns per program
DEPTH = 32  # columns that a product processes at once
WARPS = 4
SHORTEST = tl.constexpr(1e-12)  # lower bound of squared lengths in the cosine

# --- on the device ----------------------------------------------------------------------------------------------------


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1 / (1 + tl.exp(-x))


@triton.jit
def load_columns(x, b, n, B, N):
    """Loads columns n of (B, N): [BB, BN]."""
    return tl.load(x + b[:, None] * N + n[None, :], mask=(b < B)[:, None] & (n < N)[None, :], other=0.0)


@triton.jit
def store_columns(x, value, b, n, B, N):
    """Stores columns n of (B, N)."""
    tl.store(x + b[:, None] * N + n[None, :], value, mask=(b < B)[:, None] & (n < N)[None, :])


@triton.jit
def linear(x, weight, bias, b, r, B, R, K, BB: tl.constexpr, BR: tl.constexpr, BK: tl.constexpr):
    """Rows r of weight x + bias, [BB, BR]; x (B, K), weight (R, K), bias may be None."""
    y = tl.zeros([BB, BR], tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        w = load_columns(weight, r, k, R, K)  # [BR, BK]
        y = tl.dot(load_columns(x, b, k, B, K), tl.trans(w), y, input_precision="ieee")
    if bias is not None:
        y += tl.load(bias + r, mask=r < R, other=0.0)[None, :]
    return y


@triton.jit
def pull_rows(dx, dy, x, weight, dweight, dbias, r, n, lead, R, N):
    """Returns dx plus the gradient from rows r of a layer to columns n, and writes the gradients of its parameters.

    dy [BB, BR] and x [BB, BN] are 0 for padding images. `lead` is true in only one of the programs of all columns.
    """
    w = load_columns(weight, r, n, R, N)  # [BR, BN]
    if dweight is not None:
        store_columns(dweight, tl.dot(tl.trans(dy), x, input_precision="ieee"), r, n, R, N)
    if dbias is not None:
        tl.store(dbias + r, tl.sum(dy, 0), mask=(r < R) & lead)
    return tl.dot(dy, w, dx, input_precision="ieee")


@triton.jit
def divisor_of(signal, normaliser, index, b, B):
    """The divisor of a variance: the given normaliser, or the mean over the batch."""
    if normaliser is not None:
        return tl.load(normaliser + index) + 1e-8
    return tl.sum(tl.load(signal + b, mask=b < B, other=0.0), 0) / B + 1e-8


@triton.jit
def hidden_unit(first, second, third, weight, bias, h, H, S: tl.constexpr):
    """UPA's hidden layer of normalised signals; the signals' shapes must broadcast with h."""
    z = tl.load(bias + h, mask=h < H, other=0.0) + tl.load(weight + h * S, mask=h < H, other=0.0) * first
    z += tl.load(weight + h * S + 1, mask=h < H, other=0.0) * second
    if S == 3:
        z += tl.load(weight + h * S + 2, mask=h < H, other=0.0) * third
    return tl.where(z < 0, 0.0, z)


@triton.jit
def inverse_length(query):
    """1 / length of a query."""
    square = tl.sum(query * query, 0)
    return tl.rsqrt(tl.where(square < SHORTEST, SHORTEST, square))


# --- on the host ------------------------------------------------------------------------------------------------------


def kept_parts(kept: Tensor, B: int, C: int, F: int, Q: int) -> list[Tensor]:
    """Splits `kept`: context, gate of the vector, gain, gate of the map, two queries, mean and slope of the norm."""
    return list(kept.split((B * F, B * F, B * C, B * C, B * Q, B * Q, F, F)))


def padded_images(B: int) -> int:
    """BB: B, padded to a power of two of at least 16."""
    return max(16, power_of_two(B))
