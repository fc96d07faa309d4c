r"""norm_gate in Triton, forward and backward: formula and letters as in mtlkit/operators/norm_gate.

A program holds complete rows in registers, and computes mean and variance, then the output. With e = (x - mean) r,
r = 1 / sqrt(var + eps), n = e weight + bias and dn = dout SiLU(z), all over the D channels of a row:

    dx = r (dn weight - mean(dn weight) - e mean(dn weight e))       dz = dout n SiLU'(z)
    dweight = sum over rows of dn e                                  dbias = sum over rows of dn

Backward recomputes mean and variance. A program walks a run of rows and writes one partial sum of dweight and dbias;
these are added in a fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mtlkit.kernels._launch import check_dtypes, on_device, processors
from mtlkit.kernels._scan import sigmoid
from mtlkit.kernels.tables import MAX_ROW_CHANNELS, power_of_two, row_tiles


@triton.jit
def _vector(v, d, there, ELSE: tl.constexpr):
    """A vector over the channels, [1, BD]; ELSE everywhere if None."""
    value = tl.full(d.shape, ELSE, tl.float32)
    if v is not None:
        value = tl.load(v + d, mask=there, other=0.0).to(tl.float32)
    return value[None]


@triton.jit
def _normalised(x, mask, D, eps):
    """(x - mean) / sqrt(var + eps), and the factor, of each row of [BM, BD].

    After the subtraction, the remaining mean is the rounding error of the first one, and is subtracted too: it matters
    if the mean is large compared with the variance.
    """
    mean = tl.sum(x, 1) / D
    centred = tl.where(mask, x - mean[:, None], 0.0)
    drift = tl.sum(centred, 1) / D
    variance = tl.sum(centred * centred, 1) / D - drift * drift
    factor = tl.rsqrt(tl.where(variance > 0.0, variance, 0.0) + eps)
    return tl.where(mask, centred - drift[:, None], 0.0) * factor[:, None], factor


@triton.jit
def norm_gate_fwd_kernel(
    x, weight, bias, z, out, rows, D, eps, sx, sz, so, BM: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """Writes out (rows, D); sx, sz, so are the strides of rows."""
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    d = tl.arange(0, BD)
    mask = (row < rows)[:, None] & (d < D)[None]
    xx = tl.load(x + row[:, None] * sx + d[None], mask=mask, other=0.0).to(tl.float32)
    y, _ = _normalised(xx, mask, D, eps)
    y = y * _vector(weight, d, d < D, 1.0) + _vector(bias, d, d < D, 0.0)
    if z is not None:
        gate = tl.load(z + row[:, None] * sz + d[None], mask=mask, other=0.0).to(tl.float32)
        y *= gate * sigmoid(gate)
    tl.store(out + row[:, None] * so + d[None], y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def norm_gate_bwd_kernel(
    dout, x, weight, bias, z, dx, dz, dweight, dbias, rows, D, eps, run, sg, sx, sz, sdx, sdz,
    BM: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes dx and dz (rows, D), and partial sums (programs, D) over the `run` rows of each program."""
    d = tl.arange(0, BD)
    w, b = _vector(weight, d, d < D, 1.0), _vector(bias, d, d < D, 0.0)
    sum_weight = tl.zeros([BM, BD], tl.float32)
    sum_bias = tl.zeros([BM, BD], tl.float32)
    first = tl.program_id(0).to(tl.int64) * run
    for start in range(0, run, BM):
        row = first + start + tl.arange(0, BM)
        mask = ((row < rows) & (row < first + run))[:, None] & (d < D)[None]
        xx = tl.load(x + row[:, None] * sx + d[None], mask=mask, other=0.0).to(tl.float32)
        dn = tl.load(dout + row[:, None] * sg + d[None], mask=mask, other=0.0).to(tl.float32)
        e, factor = _normalised(xx, mask, D, eps)
        if z is not None:
            gate = tl.load(z + row[:, None] * sz + d[None], mask=mask, other=0.0).to(tl.float32)
            opened = sigmoid(gate)
            dgate = dn * (e * w + b) * opened * (1.0 + gate * (1.0 - opened))
            tl.store(dz + row[:, None] * sdz + d[None], dgate.to(dz.dtype.element_ty), mask=mask)
            dn *= gate * opened
        sum_weight += dn * e
        sum_bias += dn
        de = dn * w
        gradient = de - tl.sum(de, 1)[:, None] / D - e * (tl.sum(de * e, 1)[:, None] / D)
        tl.store(dx + row[:, None] * sdx + d[None], (gradient * factor[:, None]).to(dx.dtype.element_ty), mask=mask)
    part = tl.program_id(0).to(tl.int64) * D + d
    tl.store(dweight + part, tl.sum(sum_weight, 0), mask=d < D)
    tl.store(dbias + part, tl.sum(sum_bias, 0), mask=d < D)


# --- launch -----------------------------------------------------------------------------------------------------------


def _rows(t: Tensor | None) -> Tensor | None:
    """(rows, D) with contiguous channels; copied only if the strides require it."""
    if t is None:
        return None
    t = t.reshape(-1, t.shape[-1])
    return t if t.stride(1) == 1 else t.contiguous()


def _stride(t: Tensor | None) -> int:
    return 0 if t is None else t.stride(0)


def _check(op: str, channels: int, *tensors: Tensor | None) -> None:
    check_dtypes(op, *tensors)
    if channels > MAX_ROW_CHANNELS:
        raise ValueError(f"{op}: the triton backend takes at most {MAX_ROW_CHANNELS} channels, got {channels}")


def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, z: Tensor | None, eps: float) -> Tensor:
    """Returns the output, contiguous, in the shape and dtype of x. `mtlkit.ops.norm_gate` checks the arguments.

    Raises:
        TypeError: the dtype of an input is not float32, bfloat16 or float16.
        ValueError: more than MAX_ROW_CHANNELS channels.
    """
    _check("norm_gate", x.shape[-1], x, weight, bias, z)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return out
    with on_device(x):
        x, z, flat = _rows(x), _rows(z), _rows(out)
        weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
        rows, channels = x.shape
        BM, num_warps = row_tiles(channels)
        norm_gate_fwd_kernel[(triton.cdiv(rows, BM),)](
            x, weight, bias, z, flat, rows, channels, eps, _stride(x), _stride(z), _stride(flat),
            BM=BM, BD=power_of_two(channels), num_warps=num_warps, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def backward(
    dout: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, z: Tensor | None, eps: float
) -> tuple[Tensor | None, ...]:
    """Returns the gradients of x, weight, bias and z, contiguous; None for arguments that are None.

    Raises:
        TypeError: the dtype of an input is not float32, bfloat16 or float16.
        ValueError: more than MAX_ROW_CHANNELS channels.
    """
    _check("norm_gate", x.shape[-1], dout, x, weight, bias, z)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    dz = None if z is None else torch.empty_like(z, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return dx, *(None if t is None else torch.zeros_like(t) for t in (weight, bias)), dz
    with on_device(x):
        g, xx, zz = _rows(dout), _rows(x), _rows(z)
        w, b = (None if t is None else t.contiguous() for t in (weight, bias))
        rows, channels = xx.shape
        BM, num_warps = row_tiles(channels)
        run = triton.cdiv(triton.cdiv(rows, 4 * processors(x)), BM) * BM
        programs = triton.cdiv(rows, run)
        dweight = torch.empty(programs, channels, dtype=torch.float32, device=x.device)
        dbias = torch.empty_like(dweight)
        norm_gate_bwd_kernel[(programs,)](
            g, xx, w, b, zz, _rows(dx), _rows(dz), dweight, dbias, rows, channels, eps, run,
            _stride(g), _stride(xx), _stride(zz), channels, channels,
            BM=BM, BD=power_of_two(channels), num_warps=num_warps, enable_fp_fusion=True,
        )  # fmt: skip
        dweight, dbias = (None if t is None else p.sum(0).to(t.dtype) for p, t in ((dweight, weight), (dbias, bias)))
    return dx, dweight, dbias, dz
