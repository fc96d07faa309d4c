"""The Triton kernels of selective_scan, interpreted, against the reference in float64."""

from functools import cache

import pytest
import torch

from mtlkit.kernels import selective_scan, tables
from mtlkit.kernels.tables import Tiles
from mtlkit.operators.selective_scan import selective_scan_reference, selective_scan_torch
from mtlkit.testing import SelectiveScanShape, assert_accurate

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
SMALL = SelectiveScanShape(1, 5, 19, 2)
INF, NAN = float("inf"), float("nan")
# Shapes; the arguments in `without` are None; whether softplus is applied.
CASES = {
    "everything": (SelectiveScanShape(2, 5, 17, 4), (), True),
    "nothing but the scan": (SelectiveScanShape(1, 3, 9, 1), ("D", "z", "delta_bias"), False),
    "groups": (SelectiveScanShape(1, 6, 8, 3, 2), ("z",), True),
    "constant": (SelectiveScanShape(1, 4, 11, 5, 0), ("D",), True),
    "one token, 17 states": (SelectiveScanShape(1, 2, 1, 17), (), True),
}


def arguments(shape: SelectiveScanShape, dtype: torch.dtype, without: tuple = (), softplus: bool = True) -> dict:
    inputs = shape.inputs(dtype)
    if not softplus:  # time steps must be positive
        inputs["delta"] = inputs["delta"].abs()
    return {name: None if name in without else t for name, t in inputs.items()}


def output_gradients(shape: SelectiveScanShape) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    size = (shape.B, shape.D)
    return torch.randn(*size, shape.L, generator=generator), torch.randn(*size, shape.N, generator=generator)


def run(inputs: dict, dout, dlast, softplus: bool = True) -> dict:
    """Outputs and gradients by name, by the kernels."""
    out, last, kept = selective_scan.forward(*inputs.values(), softplus, True)
    dlast = None if dlast is None else dlast.to(last.dtype)
    gradients = selective_scan.backward(dout.to(out.dtype), dlast, *inputs.values(), kept, softplus)
    return {"out": out, "last": last, **dict(zip(NAMES, gradients, strict=True))}


def composed(function, inputs: dict, dout, dlast, softplus: bool = True) -> dict:
    leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in inputs.items()}
    out, last = function(*leaves.values(), softplus)
    gradients = (dout.to(out.dtype), torch.zeros_like(last) if dlast is None else dlast.to(last.dtype))
    torch.autograd.backward((out, last), gradients)
    found = {name: None if t is None else t.grad for name, t in leaves.items()}
    return {"out": out.detach(), "last": last.detach(), **found}


@cache
def _doubles(shape: SelectiveScanShape) -> dict:
    return composed(selective_scan_reference, arguments(shape, torch.float64), *output_gradients(shape))


def check(got: dict, wanted: dict, plain: dict) -> None:
    for name, value in got.items():
        if wanted[name] is None:
            assert value is None, name
        else:
            assert_accurate(name, value, wanted[name], plain[name], gradient=name not in ("out", "last"))


def check_small(got: dict) -> None:
    check(got, _doubles(SMALL), got)


@pytest.mark.parametrize("case", list(CASES))
def test_output_and_gradients(case):
    shape, without, softplus = CASES[case]
    inputs, doubles = (arguments(shape, dtype, without, softplus) for dtype in (torch.float32, torch.float64))
    gradients = output_gradients(shape)
    wanted = composed(selective_scan_reference, doubles, *gradients, softplus)
    check(run(inputs, *gradients, softplus), wanted, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit(dtype):
    inputs = arguments(SMALL, dtype)
    dout, dlast = output_gradients(SMALL)
    doubles = {name: t.double() for name, t in inputs.items()}
    wanted = composed(selective_scan_reference, doubles, dout.to(dtype).double(), dlast)
    got = run(inputs, dout, dlast)
    assert all(value.dtype == (torch.float32 if name == "last" else dtype) for name, value in got.items())
    check(got, wanted, composed(selective_scan_torch, inputs, dout, dlast))


def test_one_constant_matrix():
    """B varies and C is constant, and the reverse."""
    constant = SelectiveScanShape(1, 5, 19, 2, 0).inputs()["C"]
    for name in ("B", "C"):
        inputs = arguments(SMALL, torch.float32) | {name: constant}
        wanted = composed(
            selective_scan_reference, {n: t.double() for n, t in inputs.items()}, *output_gradients(SMALL)
        )
        check(run(inputs, *output_gradients(SMALL)), wanted, wanted)


@pytest.mark.parametrize(("length", "chunks"), [(33, 3), (32, 2), (31, 2)])
def test_split(monkeypatch, length, chunks):
    """Chunks that end with the sequence, one token after a border, and one before it."""
    monkeypatch.setattr(tables, "split", lambda *_: chunks)
    shape = SelectiveScanShape(2, 3, length, 2)
    wanted = _doubles(shape)
    check(run(arguments(shape, torch.float32), *output_gradients(shape)), wanted, wanted)


def test_split_without_a_gradient_of_the_last_state(monkeypatch):
    monkeypatch.setattr(tables, "split", lambda *_: 2)
    dout, _ = output_gradients(SMALL)
    inputs = arguments(SMALL, torch.float32)
    wanted = composed(selective_scan_reference, {n: t.double() for n, t in inputs.items()}, dout, None)
    check(run(inputs, dout, None), wanted, wanted)


@pytest.mark.parametrize("tiles", [Tiles(4, 1, 2, 1, 4, 1), Tiles(2, 2, 1, 2, 2, 2)], ids=str)
def test_tiles_decide_the_speed_alone(monkeypatch, tiles):
    monkeypatch.setattr(selective_scan, "scan_tiles", lambda *_: tiles)
    check_small(run(arguments(SMALL, torch.float32), *output_gradients(SMALL)))


def test_layouts_repetition_and_wide_offsets(monkeypatch):
    """Bitwise equal for every layout and offset type; gradients have the layouts of their tensors."""
    inputs, gradients = arguments(SMALL, torch.float32), output_gradients(SMALL)
    plain = run(inputs, *gradients)
    inputs |= {name: inputs[name].transpose(1, 2).contiguous().transpose(1, 2) for name in ("u", "B", "z")}
    inputs["A"] = inputs["A"].t().contiguous().t()
    monkeypatch.setattr(selective_scan, "is_wide", lambda *_: True)
    got = run(inputs, *gradients)
    assert all(torch.equal(got[name], plain[name]) for name in plain)
    assert all(got[name].stride() == inputs[name].stride() for name in NAMES)


def test_empty_batch_and_float64():
    inputs = SelectiveScanShape(0, 4, 5, 2).inputs()
    out, last, kept = selective_scan.forward(*inputs.values(), True, True)
    assert out.shape == (0, 4, 5)
    assert last.shape == (0, 4, 2)
    for gradient, tensor in zip(
        selective_scan.backward(out, last, *inputs.values(), kept, True), inputs.values(), strict=True
    ):
        assert gradient.shape == tensor.shape
        assert not gradient.any()
    with pytest.raises(TypeError, match=r"selective_scan: the triton backend expects .*float64"):
        selective_scan.forward(*SMALL.inputs(torch.float64).values(), True, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("A", -INF),
        ("A", INF),
        ("A", NAN),
        ("u", INF),
        ("delta", INF),
        ("delta", -INF),
        ("B", NAN),
        ("C", INF),
        ("D", -INF),
    ],
)
def test_what_is_not_finite_spreads_as_in_the_reference(name, value):
    inputs = arguments(SelectiveScanShape(1, 3, 9, 2), torch.float32)
    flat = inputs[name].flatten().clone()
    flat[len(flat) // 2] = value
    inputs[name] = flat.view(inputs[name].shape)
    wanted = selective_scan_reference(*inputs.values(), True)
    got = selective_scan.forward(*inputs.values(), True, False)[:2]
    for value, exact in zip(got, wanted, strict=True):
        torch.testing.assert_close(value, exact, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_what_is_kept():
    inputs = arguments(SMALL, torch.float32)
    _, _, kept = selective_scan.forward(*inputs.values(), True, True)
    _, _, nothing = selective_scan.forward(*inputs.values(), True, False)
    assert kept.shape == selective_scan.checkpoint_shape(inputs["u"], inputs["A"])
    assert kept.isfinite().all()
    assert nothing.numel() == 0
