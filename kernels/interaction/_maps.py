"""Shared by the passes over a map (B, C, H, W): its tiles on the device, its rows and blocks on the host."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtlkit.kernels.tables import power_of_two

# --- on the device ----------------------------------------------------------------------------------------------------


@triton.jit
def along(index, stride, WIDE: tl.constexpr):
    """The offsets of the elements of an axis."""
    if WIDE:
        index = index.to(tl.int64)
    return index * stride


@triton.jit
def finite_or_zero(x):
    """The shift of a channel's moments: its first pixel, or 0 if that is not finite, so that inf and NaN stay local."""
    return tl.where(tl.abs(x) < float("inf"), x, 0.0)


@triton.jit
def rectified(z):
    """ReLU; keeps NaN."""
    return tl.where(z < 0, 0.0, z)


@triton.jit
def positive(z):
    """1 if ReLU passes the gradient at z, else 0."""
    return tl.where(z <= 0, 0.0, 1.0)


@triton.jit
def store_signs(signs, z, image, first, i, P, L, BP: tl.constexpr, BL: tl.constexpr):
    """Stores rows [first, first + BP) of a projected map [BP, BL] at pixels i as bits: 1 unless an element is <= 0.

    signs is (B, ceil(P / 32), L); row p is bit p % 32 of its word. BP divides first, 32 divides BP.
    """
    WORDS: tl.constexpr = BP // 32
    words = tl.cdiv(P, 32)
    word = first // 32 + tl.arange(0, WORDS)
    bits = tl.reshape(positive(z).to(tl.int32), [WORDS, 32, BL]) << tl.arange(0, 32)[None, :, None]
    at = signs + (image * words + word[:, None]) * L + i[None, :]
    tl.store(at, tl.sum(bits, 1), mask=(word < words)[:, None] & (i < L)[None, :])


@triton.jit
def load_signs(signs, image, first, i, P, L, BP: tl.constexpr, BL: tl.constexpr):
    """Loads the bits of `store_signs` as ones and zeros in float32, [BP, BL]."""
    WORDS: tl.constexpr = BP // 32
    words = tl.cdiv(P, 32)
    word = first // 32 + tl.arange(0, WORDS)
    at = signs + (image * words + word[:, None]) * L + i[None, :]
    packed = tl.load(at, mask=(word < words)[:, None] & (i < L)[None, :], other=0)  # [WORDS, BL]
    bits = (packed[:, None, :] >> tl.arange(0, 32)[None, :, None]) & 1
    return tl.reshape(bits, [BP, BL]).to(tl.float32)


# --- on the host ------------------------------------------------------------------------------------------------------

FULL = 4  # programs per processor in a launch with many tiles


def precision_of(x: Tensor) -> str:
    """The precision of products: float32 as three products in tf32, which is as accurate as float32; else plain.

    AMD's GPUs multiply float32 matrices directly, and Triton has no tf32x3 for them.
    """
    return "tf32x3" if x.dtype == torch.float32 and torch.version.hip is None else "ieee"


def stages_of(most: int) -> int:
    """The number of steps of a product in shared memory at once: `most`; 2 on AMD's GPUs, which have only 64 KB."""
    return most if torch.version.hip is None else 2


def block_of(size: int, most: int) -> int:
    """A power of two, at least 32 and at most `most`, that covers `size` in few blocks."""
    return max(32, min(most, power_of_two(size)))


def is_wide(*maps: Tensor | None) -> bool:
    """Whether an offset within one image, or in the row below a tile, may exceed 31 bits."""
    reach = (
        sum((n + 1) * abs(s) for n, s in zip(t.shape[1:], t.stride()[1:], strict=True)) for t in maps if t is not None
    )
    return any(r >= 1 << 30 for r in reach)


def pixel_rows(x: Tensor) -> Tensor:
    """(B, C, L) of (B, C, H, W); copied only if the strides require it, never for NCHW and channels-last."""
    return x.flatten(2)


def new_map(x: Tensor) -> Tensor:
    """NCHW or channels-last, whichever is closer to the layout of x."""
    in_rows = 1 in x.shape[2:] or x.stride(2) == x.shape[3] * x.stride(3)
    channels_last = x.stride(1) == 1 and x.shape[1] > 1 and in_rows
    return torch.empty_like(x, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def strides_of(rows: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if rows is None else rows.stride()


def new_signs(x: Tensor, projected: int) -> Tensor:
    """A buffer for the signs of a map's projection."""
    return torch.empty(x.shape[0], -(-projected // 32), x.shape[2] * x.shape[3], dtype=torch.int32, device=x.device)
