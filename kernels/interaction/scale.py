"""The scaling pass of task interaction in Triton, forward and backward."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtlkit.kernels._launch import check_dtypes, on_device, processors
from mtlkit.kernels.interaction._maps import FULL, along, is_wide, new_map, pixel_rows

# --- kernels ----------------------------------------------------------------------------------------------------------


@triton.jit
def interaction_scale_fwd_kernel(
    x, factors, y,
    C, L, tiles,
    sx_b, sx_c, sx_l, sy_b, sy_c, sy_l,
    WIDE: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """The map times a factor (B, C) for each channel."""
    image = (tl.program_id(0) // tiles).to(tl.int64)
    i = tl.program_id(0) % tiles * BL + tl.arange(0, BL)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (c < C)[:, None] & (i < L)[None, :]
    factor = tl.load(factors + image * C + c, mask=c < C, other=0.0)
    at = along(c, sx_c, WIDE)[:, None] + along(i, sx_l, WIDE)[None, :]
    v = tl.load(x + image * sx_b + at, mask=inside, other=0.0).to(tl.float32)
    at = along(c, sy_c, WIDE)[:, None] + along(i, sy_l, WIDE)[None, :]
    tl.store(y + image * sy_b + at, v * factor[:, None], mask=inside)


@triton.jit
def interaction_scale_bwd_kernel(
    x, dy, parts,
    C, L, chunks, chunk_tiles,
    sx_b, sx_c, sx_l, sy_b, sy_c, sy_l,
    WIDE: tl.constexpr, BC: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """The sum of dy x over a chunk of the pixels, into parts (B, chunks, C)."""
    image = (tl.program_id(0) // chunks).to(tl.int64)
    chunk = tl.program_id(0) % chunks
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    x += image * sx_b + along(c, sx_c, WIDE)[:, None]
    dy += image * sy_b + along(c, sy_c, WIDE)[:, None]
    total = tl.zeros([BC, BL], tl.float32)
    for tile in range(chunk_tiles):
        i = (chunk * chunk_tiles + tile) * BL + tl.arange(0, BL)
        inside = (c < C)[:, None] & (i < L)[None, :]
        v = tl.load(x + along(i, sx_l, WIDE)[None, :], mask=inside, other=0.0).to(tl.float32)
        g = tl.load(dy + along(i, sy_l, WIDE)[None, :], mask=inside, other=0.0).to(tl.float32)
        total += v * g
    tl.store(parts + (image * chunks + chunk) * C + c, tl.sum(total, 1), mask=c < C)


# --- launch -----------------------------------------------------------------------------------------------------------


def _tile_of(rows: Tensor) -> tuple[int, int]:
    """Channels and pixels per tile for passes that only stream: long along the contiguous dimension."""
    return (64, 32) if rows.stride(1) == 1 and rows.stride(2) != 1 else (8, 128)


def scale_forward(x: Tensor, factors: Tensor) -> Tensor:
    """The map (B, C, H, W) times float32 factors (B, C), in the dtype and memory format of x.

    Raises:
        TypeError: the dtype of an input is not float32, bfloat16 or float16.
    """
    check_dtypes("task_interaction", x)
    y = new_map(x)
    B, C, H, W = x.shape
    if B == 0:
        return y
    rows, L = pixel_rows(x), H * W
    BC, BL = _tile_of(rows)
    tiles = triton.cdiv(L, BL)
    out = pixel_rows(y)
    with on_device(x):
        interaction_scale_fwd_kernel[(B * tiles, triton.cdiv(C, BC))](
            rows, factors.contiguous(), out,
            C, L, tiles,
            *rows.stride(), *out.stride(),
            WIDE=is_wide(x, y), BC=BC, BL=BL,
        )  # fmt: skip
    return y


def scale_backward(dy: Tensor, x: Tensor) -> Tensor:
    """The gradient of the factors, (B, C) in float32: the sum of dy x over the pixels.

    Raises:
        TypeError: the dtype of an input is not float32, bfloat16 or float16.
    """
    check_dtypes("task_interaction", x, dy)
    B, C, H, W = x.shape
    if B == 0:
        return torch.zeros(B, C, dtype=torch.float32, device=x.device)
    rows, dy_rows, L = pixel_rows(x), pixel_rows(dy), H * W
    BC, BL = _tile_of(rows)
    tiles, blocks = triton.cdiv(L, BL), triton.cdiv(C, BC)
    chunk_tiles = triton.cdiv(tiles, max(1, min(tiles, FULL * processors(x) // (B * blocks))))
    chunks = triton.cdiv(tiles, chunk_tiles)
    parts = torch.empty(B, chunks, C, dtype=torch.float32, device=x.device)
    with on_device(x):
        interaction_scale_bwd_kernel[(B * chunks, blocks)](
            rows, dy_rows, parts,
            C, L, chunks, chunk_tiles,
            *rows.stride(), *dy_rows.stride(),
            WIDE=is_wide(x, dy), BC=BC, BL=BL, num_warps=8,
        )  # fmt: skip
    return parts.sum(1)
