r"""dwconv_silu in Triton, forward and backward: formula and letters as in mtlkit/operators/dwconv_silu.

A program owns a tile of BP pixels, numbered consecutively over all images, times BD channels; the nine neighbours of a
pixel are read repeatedly, from the caches. With da = dy SiLU'(a):

    dbias = sum da     dweight[i, j] = sum da x[. + (i - 1, j - 1)]     dx = sum_ij weight[i, j] da[. - (i - 1, j - 1)]

Backward recomputes a and writes da as a float32 map and one partial sum per program of dweight and dbias, which are
added in a fixed order. A second kernel computes dx from da.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtlkit.kernels._launch import check_dtypes, on_device, processors
from mtlkit.kernels._scan import sigmoid
from mtlkit.kernels.tables import pixel_tiles


@triton.jit
def _place(pixel, H, W):
    """Image, row and column of a pixel."""
    return pixel // W // H, pixel // W % H, pixel % W


@triton.jit
def _neighbour(x, image, h, w, d, inside, H, W, i, j, s_b, s_d, s_h, s_w):
    """The value at (h + i - 1, w + j - 1), 0 beyond the border: [BP, BD]."""
    hh, ww = h + (i - 1), w + (j - 1)
    there = (hh >= 0) & (hh < H) & (ww >= 0) & (ww < W)
    at = image * s_b + hh.to(tl.int64) * s_h + ww.to(tl.int64) * s_w
    return tl.load(x + at[:, None] + d.to(tl.int64)[None] * s_d, mask=inside & there[:, None], other=0.0).to(tl.float32)


@triton.jit
def _tap(weight, d, D, tap):
    return tl.load(weight + d * 9 + tap, mask=d < D, other=0.0).to(tl.float32)[None]


@triton.jit
def _convolved(x, weight, bias, image, h, w, d, inside, D, H, W, s_b, s_d, s_h, s_w, BP: tl.constexpr, BD: tl.constexpr,
               FLIP: tl.constexpr):  # fmt: skip
    """The sum a at the pixels, [BP, BD]; with FLIP the taps come in reverse order, as the gradient of x needs them."""
    a = tl.zeros([BP, BD], tl.float32)
    if bias is not None:
        a += tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)[None]
    for tap in tl.static_range(9):
        value = _neighbour(x, image, h, w, d, inside, H, W, tap // 3, tap % 3, s_b, s_d, s_h, s_w)
        a += _tap(weight, d, D, 8 - tap if FLIP else tap) * value
    return a


@triton.jit
def dwconv_silu_fwd_kernel(
    x, weight, bias, y, pixels, D, H, W, s_b, s_d, s_h, s_w, sy_b, sy_d, sy_h, sy_w,
    SILU: tl.constexpr, FLIP: tl.constexpr, BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The output SiLU(a); without SILU and with FLIP, dx from da."""
    blocks = tl.cdiv(D, BD)
    d = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    pixel = (tl.program_id(0) // blocks).to(tl.int64) * BP + tl.arange(0, BP)
    inside = (pixel < pixels)[:, None] & (d < D)[None]
    image, h, w = _place(pixel, H, W)
    a = _convolved(x, weight, bias, image, h, w, d, inside, D, H, W, s_b, s_d, s_h, s_w, BP, BD, FLIP)
    if SILU:
        a *= sigmoid(a)
    at = image * sy_b + h * sy_h + w * sy_w
    tl.store(y + at[:, None] + d.to(tl.int64)[None] * sy_d, a.to(y.dtype.element_ty), mask=inside)


@triton.jit
def dwconv_silu_bwd_kernel(
    dy, x, weight, bias, da, partial, pixels, run, D, H, W, sg_b, sg_d, sg_h, sg_w, s_b, s_d, s_h, s_w,
    BP: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes da (B, H, W, D), and partial sums of dweight and dbias over `run` pixels each: (runs, 10, D)."""
    blocks = tl.cdiv(D, BD)
    d = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    part = (tl.program_id(0) // blocks).to(tl.int64)
    s0, s1, s2 = tl.zeros([BP, BD], tl.float32), tl.zeros([BP, BD], tl.float32), tl.zeros([BP, BD], tl.float32)
    s3, s4, s5 = tl.zeros([BP, BD], tl.float32), tl.zeros([BP, BD], tl.float32), tl.zeros([BP, BD], tl.float32)
    s6, s7, s8 = tl.zeros([BP, BD], tl.float32), tl.zeros([BP, BD], tl.float32), tl.zeros([BP, BD], tl.float32)
    s9 = tl.zeros([BP, BD], tl.float32)
    for start in range(0, run, BP):
        pixel = part * run + start + tl.arange(0, BP)
        inside = (pixel < pixels)[:, None] & (d < D)[None]
        image, h, w = _place(pixel, H, W)
        a = _convolved(x, weight, bias, image, h, w, d, inside, D, H, W, s_b, s_d, s_h, s_w, BP, BD, False)
        at = image * sg_b + h * sg_h + w * sg_w
        g = tl.load(dy + at[:, None] + d.to(tl.int64)[None] * sg_d, mask=inside, other=0.0).to(tl.float32)
        opened = sigmoid(a)
        g *= opened * (1.0 + a * (1.0 - opened))
        s0 += g * _neighbour(x, image, h, w, d, inside, H, W, 0, 0, s_b, s_d, s_h, s_w)
        s1 += g * _neighbour(x, image, h, w, d, inside, H, W, 0, 1, s_b, s_d, s_h, s_w)
        s2 += g * _neighbour(x, image, h, w, d, inside, H, W, 0, 2, s_b, s_d, s_h, s_w)
        s3 += g * _neighbour(x, image, h, w, d, inside, H, W, 1, 0, s_b, s_d, s_h, s_w)
        s4 += g * _neighbour(x, image, h, w, d, inside, H, W, 1, 1, s_b, s_d, s_h, s_w)
        s5 += g * _neighbour(x, image, h, w, d, inside, H, W, 1, 2, s_b, s_d, s_h, s_w)
        s6 += g * _neighbour(x, image, h, w, d, inside, H, W, 2, 0, s_b, s_d, s_h, s_w)
        s7 += g * _neighbour(x, image, h, w, d, inside, H, W, 2, 1, s_b, s_d, s_h, s_w)
        s8 += g * _neighbour(x, image, h, w, d, inside, H, W, 2, 2, s_b, s_d, s_h, s_w)
        s9 += g
        tl.store(da + pixel[:, None] * D + d[None], g, mask=inside)
    at = partial + part * 10 * D + d
    tl.store(at, tl.sum(s0, 0), mask=d < D)
    tl.store(at + D, tl.sum(s1, 0), mask=d < D)
    tl.store(at + 2 * D, tl.sum(s2, 0), mask=d < D)
    tl.store(at + 3 * D, tl.sum(s3, 0), mask=d < D)
    tl.store(at + 4 * D, tl.sum(s4, 0), mask=d < D)
    tl.store(at + 5 * D, tl.sum(s5, 0), mask=d < D)
    tl.store(at + 6 * D, tl.sum(s6, 0), mask=d < D)
    tl.store(at + 7 * D, tl.sum(s7, 0), mask=d < D)
    tl.store(at + 8 * D, tl.sum(s8, 0), mask=d < D)
    tl.store(at + 9 * D, tl.sum(s9, 0), mask=d < D)


# --- launch -----------------------------------------------------------------------------------------------------------


def _new_output(x: Tensor) -> Tensor:
    """An empty, dense tensor like x; channels-last if x is."""
    channels_last = x.shape[1] > 1 and x.stride(1) == 1
    return torch.empty_like(x, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, silu: bool) -> None:
    batch, channels, height, width = x.shape
    BP, BD, num_warps = pixel_tiles(channels)
    pixels = batch * height * width
    dwconv_silu_fwd_kernel[(triton.cdiv(pixels, BP) * triton.cdiv(channels, BD),)](
        x, weight, bias, y, pixels, channels, height, width, *x.stride(), *y.stride(),
        SILU=silu, FLIP=not silu, BP=BP, BD=BD, num_warps=num_warps, enable_fp_fusion=True,
    )  # fmt: skip


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns the output, dense, in the memory order of x. `mtlkit.ops.dwconv_silu` checks the arguments.

    Raises:
        TypeError: the dtype of an input is not float32, bfloat16 or float16.
    """
    check_dtypes("dwconv_silu", x, weight, bias)
    y = _new_output(x)
    if x.shape[0] > 0:
        with on_device(x):
            _convolve(x, weight.contiguous(), None if bias is None else bias.contiguous(), y, True)
    return y


def backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns the gradients of x, weight and bias; that of the bias is None if the bias is.

    Raises:
        TypeError: the dtype of an input is not float32, bfloat16 or float16.
    """
    check_dtypes("dwconv_silu", dy, x, weight, bias)
    dx = _new_output(x)
    batch, channels, height, width = x.shape
    if batch == 0:
        return dx, torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
    with on_device(x):
        w, b = weight.contiguous(), None if bias is None else bias.contiguous()
        BP, BD, num_warps = pixel_tiles(channels)
        pixels, blocks = batch * height * width, triton.cdiv(channels, BD)
        run = triton.cdiv(triton.cdiv(pixels * blocks, 4 * processors(x)), BP) * BP
        parts = triton.cdiv(pixels, run)
        da = torch.empty(batch, height, width, channels, dtype=torch.float32, device=x.device)
        partial = torch.empty(parts, 10, channels, dtype=torch.float32, device=x.device)
        dwconv_silu_bwd_kernel[(parts * blocks,)](
            dy, x, w, b, da, partial, pixels, run, channels, height, width, *dy.stride(), *x.stride(),
            BP=BP, BD=BD, num_warps=num_warps, enable_fp_fusion=True,
        )  # fmt: skip
        _convolve(da.permute(0, 3, 1, 2), w, None, dx, False)
        dweight = partial[:, :9].sum(0).t().reshape(weight.shape).to(weight.dtype)
        # separate memory, as results of an operator must not share it
        dbias = None if bias is None else partial[:, 9].sum(0).to(bias.dtype)
    return dx, dweight, dbias
