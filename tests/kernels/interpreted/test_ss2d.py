"""The Triton kernels of ss2d, interpreted, against the reference in float64."""

from functools import cache

import pytest
import torch
import triton
import triton.language as tl

from mtlkit.kernels import ss2d, tables
from mtlkit.kernels._launch import division
from mtlkit.kernels._scan import walk
from mtlkit.kernels._ss2d_tiles import lines
from mtlkit.kernels.tables import Tiles
from mtlkit.operators.ss2d import ss2d_reference, ss2d_torch
from mtlkit.testing import SS2DShape, assert_accurate

NAMES = ("y", "u", "x_dbl", "dt_weight", "dt_bias", "A_logs", "Ds")
# Odd and tiny: partly filled D, one pixel, one row, one column, odd and even numbers of blocks, every kind of N and R.
SHAPES = [
    SS2DShape(2, 5, 3, 4, 1, 2),
    SS2DShape(1, 3, 1, 1, 2, 1),
    SS2DShape(1, 19, 3, 5, 16, 6),
    SS2DShape(1, 4, 1, 9, 4, 2),
    SS2DShape(1, 4, 17, 1, 5, 1),
    SS2DShape(1, 2, 3, 3, 8, 3),
    SS2DShape(1, 2, 2, 4, 17, 5),
]
SMALL = SS2DShape(1, 3, 3, 7, 2, 2)


def gradient_of_output(shape: SS2DShape) -> torch.Tensor:
    return torch.randn(shape.B, shape.D, shape.H, shape.W, generator=torch.Generator().manual_seed(7))


def run(inputs: dict, dy: torch.Tensor) -> dict:
    """Output and gradients by name, by the kernels."""
    y, checkpoints = ss2d.forward(*inputs.values(), inputs["u"].dtype, True)
    gradients = ss2d.backward(dy.to(y.dtype), *inputs.values(), checkpoints)
    return dict(zip(NAMES, (y, *gradients), strict=True))


def composed(function, inputs: dict, dy: torch.Tensor) -> dict:
    leaves = [t.detach().requires_grad_() for t in inputs.values()]
    y = function(*leaves, leaves[0].dtype)
    y.backward(dy.to(y.dtype))
    return dict(zip(NAMES, (y.detach(), *(t.grad for t in leaves)), strict=True))


@cache
def exact(shape: SS2DShape, dtype: torch.dtype) -> dict:
    doubles = {name: t.double() for name, t in shape.inputs(dtype).items()}
    return composed(ss2d_reference, doubles, gradient_of_output(shape).to(dtype))


def check(got: dict, shape: SS2DShape, dtype: torch.dtype = torch.float32) -> None:
    plain = composed(ss2d_torch, shape.inputs(dtype), gradient_of_output(shape))
    for name, value in got.items():
        assert value.dtype == dtype
        assert_accurate(name, value, exact(shape, dtype)[name], plain[name], gradient=name != "y")


@triton.jit
def _walk_kernel(
    offsets, H, W, stride_h, stride_w, multiplier_w, shift_w, multiplier_h, shift_h,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The positions of each pair, (2, BLOCK)."""
    pair, position = tl.program_id(0), tl.arange(0, BLOCK)
    bend, step = lines(pair, H, W, stride_h, stride_w, WIDE)
    multiplier = tl.where(pair == 0, multiplier_w, multiplier_h)
    shift = tl.where(pair == 0, shift_w, shift_h)
    tl.store(offsets + pair * BLOCK + position, walk(position, bend, step, multiplier, shift, WIDE))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("height", "width"), [(3, 5), (1, 6), (6, 1), (1, 1)])
def test_walks_lead_through_the_image(height, width, wide):
    stride_h, stride_w = 1000, 7
    pixels = [[h * stride_h + w * stride_w for w in range(width)] for h in range(height)]
    rows = [p for row in pixels for p in row]
    columns = [p for column in zip(*pixels, strict=True) for p in column]
    offsets = torch.full((2, 16), -1, dtype=torch.int64)
    _walk_kernel[(2,)](
        offsets, height, width, stride_h, stride_w, *division(width), *division(height), WIDE=wide, BLOCK=16
    )
    assert offsets[:, : height * width].tolist() == [rows, columns]


def cut(monkeypatch, chunks: int) -> None:
    monkeypatch.setattr(tables, "split", lambda *_: chunks)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients(shape):
    check(run(shape.inputs(), gradient_of_output(shape)), shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit(dtype):
    check(run(SMALL.inputs(dtype), gradient_of_output(SMALL)), SMALL, dtype)


def views(inputs: dict) -> dict[str, dict]:
    """The same numbers in other layouts."""
    u, x_dbl = inputs["u"], inputs["x_dbl"]
    spread = torch.zeros(*u.shape[:3], 2 * u.shape[3])
    spread[..., ::2] = u
    return {
        "channels_first": {"u": u.contiguous(), "x_dbl": x_dbl.contiguous()},
        "every other column": {"u": spread[..., ::2], "A_logs": inputs["A_logs"].t().contiguous().t()},
    }


@pytest.mark.parametrize("layout", list(views(SMALL.inputs())))
def test_layouts(layout):
    """Every layout gives bitwise the same results, in its own layout."""
    inputs, dy = SMALL.inputs(), gradient_of_output(SMALL)
    plain = run(inputs, dy)
    inputs |= views(inputs)[layout]
    wide = torch.zeros(SMALL.B, SMALL.D, SMALL.H, 2 * SMALL.W)
    wide[..., ::2] = dy
    got = run(inputs, wide[..., ::2])
    assert all(torch.equal(got[name], plain[name]) for name in NAMES)
    assert all(got[name].stride() == torch.empty_like(inputs[name]).stride() for name in NAMES[1:])


@pytest.mark.parametrize(("height", "width"), [(3, 11), (4, 8), (7, 7)])
def test_split(monkeypatch, height, width):
    """Chunks that end with the image, one token after a border, and one before it."""
    shape = SS2DShape(1, 3, height, width, 2, 1)
    cut(monkeypatch, 3)
    check(run(shape.inputs(), gradient_of_output(shape)), shape)


@pytest.mark.parametrize("tiles", [Tiles(4, 2, 2, 1, 4, 1), Tiles(2, 4, 1, 2, 2, 2), Tiles(8, 1, 4, 2, 1, 4)], ids=str)
def test_tiles_decide_the_speed_alone(monkeypatch, tiles):
    monkeypatch.setattr(ss2d, "scan_tiles", lambda *_: tiles)
    check(run(SMALL.inputs(), gradient_of_output(SMALL)), SMALL)


def test_repeats_bit_by_bit(monkeypatch):
    cut(monkeypatch, 2)
    inputs, dy = SMALL.inputs(), gradient_of_output(SMALL)
    first, second = run(inputs, dy), run(inputs, dy)
    assert all(torch.equal(first[name], second[name]) for name in NAMES)


def test_wide_offsets(monkeypatch):
    """64-bit offsets within an image give the same results."""
    inputs, dy = SMALL.inputs(), gradient_of_output(SMALL)
    narrow = run(inputs, dy)
    monkeypatch.setattr(ss2d, "is_wide", lambda *_: True)
    wide = run(inputs, dy)
    assert all(torch.equal(narrow[name], wide[name]) for name in NAMES)


def test_float32_output_of_float16_input():
    """The output may exceed float16's range; a float32 output does not overflow."""
    inputs = SHAPES[0].inputs(torch.float16)
    inputs["Ds"] = torch.full_like(inputs["Ds"], 6e4)
    inputs["u"] = inputs["u"].clamp(0.5, 2)
    y, _ = ss2d.forward(*inputs.values(), torch.float32, False)
    assert_accurate("y", y, ss2d_reference(*(t.double() for t in inputs.values()), torch.float64))


def test_strong_decay_neither_overflows_nor_lingers():
    """Time steps of 30 and more: each token forgets everything before it."""
    inputs, dy = SMALL.inputs(), gradient_of_output(SMALL)
    inputs["dt_bias"] = inputs["dt_bias"] + 40
    wanted = composed(ss2d_reference, {name: t.double() for name, t in inputs.items()}, dy)
    for name, value in run(inputs, dy).items():
        assert_accurate(name, value, wanted[name], gradient=name != "y")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", NAMES[1:])
def test_what_is_not_finite_spreads_as_in_the_reference(name, value):
    shape = SS2DShape(1, 3, 2, 5, 2, 1)
    inputs = shape.inputs()
    flat = inputs[name].flatten().clone()
    flat[len(flat) // 2] = value
    inputs[name] = flat.view(inputs[name].shape)
    wanted = ss2d_reference(*inputs.values(), torch.float32)
    got, _ = ss2d.forward(*inputs.values(), torch.float32, False)
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.isinf(), wanted.isinf())


def test_what_is_kept():
    inputs = SMALL.inputs()
    shape = ss2d.checkpoint_shape(inputs["u"], inputs["A_logs"])
    _, kept = ss2d.forward(*inputs.values(), torch.float32, True)
    _, nothing = ss2d.forward(*inputs.values(), torch.float32, False)
    assert kept.shape == shape
    assert kept.isfinite().all()
    assert nothing.numel() == 0


def test_empty_batch():
    inputs = SS2DShape(0, 8, 5, 4, 16, 2).inputs()
    y, checkpoints = ss2d.forward(*inputs.values(), torch.float32, True)
    assert y.shape == (0, 8, 5, 4)
    for gradient, tensor in zip(ss2d.backward(y, *inputs.values(), checkpoints), inputs.values(), strict=True):
        assert gradient.shape == tensor.shape
        assert not gradient.any()


def test_float64_is_not_served():
    inputs = SMALL.inputs(torch.float64)
    with pytest.raises(
        TypeError, match=r"ss2d: the triton backend expects float32, bfloat16 or float16, got .*float64"
    ):
        ss2d.forward(*inputs.values(), torch.float64, False)
