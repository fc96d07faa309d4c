"""ss2d: every backend against the reference in float64, and everything that a call may meet."""

from functools import cache

import pytest
import torch

import mtlkit
from mtlkit.operators._launch import CHECKPOINT_TOKENS, MAX_STATES
from mtlkit.ops import cross_merge, cross_scan, ss2d
from mtlkit.testing import SS2DShape, assert_accurate

OP = torch.ops.mtlkit.ss2d.default
NAMES = ("u", "x_dbl", "dt_weight", "dt_bias", "A_logs", "Ds")
# Odd and tiny: D ragged, one pixel, one row, one column, lengths around the tiles, every kind of N and R.
SHAPES = [
    SS2DShape(2, 24, 7, 5, 16, 3),
    SS2DShape(1, 5, 3, 4, 1, 1),
    SS2DShape(1, 1, 1, 1, 16, 1),
    SS2DShape(3, 17, 9, 6, 3, 2),
    SS2DShape(1, 33, 1, 7, 16, 2),
    SS2DShape(1, 8, 33, 1, 64, 1),
    SS2DShape(1, 20, 8, 13, 40, 5),
    SS2DShape(2, 16, 4, 8, 1, 4),
    SS2DShape(1, 19, 5, 13, 4, 24),
    SS2DShape(1, 3, 8, 8, 2, 1),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def gradient_of_output(inputs: dict) -> torch.Tensor:
    """The same random numbers for every dtype."""
    return torch.randn(inputs["u"].shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def run(backend: str, inputs: dict, dy: torch.Tensor | None = None) -> dict:
    """Output and gradients by name."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    with mtlkit.use_backend(backend):
        y = ss2d(**leaves)
    y.backward((gradient_of_output(inputs) if dy is None else dy).to(y.dtype))
    return {"y": y.detach(), **{name: t.grad for name, t in leaves.items()}}


@cache
def exact(shape: SS2DShape, dtype: torch.dtype) -> dict:
    """The reference in float64, on inputs rounded to `dtype`."""
    return run("reference", {name: t.double() for name, t in shape.inputs(dtype).items()})


@cache
def plain(shape: SS2DShape, dtype: torch.dtype) -> dict:
    return run("torch", shape.inputs(dtype))


def check(got: dict, shape: SS2DShape, dtype: torch.dtype) -> None:
    for name, value in got.items():
        assert_accurate(name, value, exact(shape, dtype)[name], plain(shape, dtype)[name], gradient=name != "y")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_output_and_gradients(backend, dtype, shape, poisoned):
    got = run(backend, shape.inputs(dtype))
    assert all(t.dtype == dtype for t in got.values())
    check(got, shape, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_instruction_set(isa, dtype, shape):
    check(run("cpu", shape.inputs(dtype)), shape, dtype)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_threads_share_the_work(threads, shape, count):
    """More threads than items split directions and channels; each count is right and repeats bit by bit."""
    threads(count)
    got = run("cpu", shape.inputs())
    check(got, shape, torch.float32)
    for _ in range(3):
        again = run("cpu", shape.inputs())
        assert all(torch.equal(got[name], again[name]) for name in got)


def views(inputs: dict) -> dict[str, dict]:
    """The same numbers in other layouts."""
    u, x_dbl = inputs["u"], inputs["x_dbl"]
    wide = torch.zeros(u.shape[0], u.shape[2], u.shape[3], 2 * u.shape[1] + 3)
    wide[..., 1 : 1 + u.shape[1]] = u.permute(0, 2, 3, 1)
    spread = torch.zeros(*u.shape[:3], 2 * u.shape[3])
    spread[..., ::2] = u
    return {
        "channels_last": {"u": u.contiguous(memory_format=torch.channels_last)},
        "channels_first": {"u": u.contiguous()},
        "slice of a wider pixel": {"u": wide[..., 1 : 1 + u.shape[1]].permute(0, 3, 1, 2)},
        "every other column": {"u": spread[..., ::2]},
        "transposed image": {"u": u.transpose(2, 3).contiguous().transpose(2, 3)},
        "x_dbl as a convolution leaves it": {"x_dbl": x_dbl.contiguous()},
        "transposed parameters": {
            "dt_weight": inputs["dt_weight"].transpose(1, 2).contiguous().transpose(1, 2),
            "A_logs": inputs["A_logs"].t().contiguous().t(),
        },
    }


@pytest.mark.parametrize("layout", list(views(SHAPES[0].inputs())))
def test_layouts(layout):
    shape = SHAPES[0]
    inputs = shape.inputs()
    view = views(inputs)[layout]
    assert all(torch.equal(view[name], inputs[name]) for name in view)
    got = run("cpu", {**inputs, **view})
    check(got, shape, torch.float32)


def test_output_keeps_the_memory_format():
    inputs = SHAPES[0].inputs()
    for memory_format in (torch.channels_last, torch.contiguous_format):
        inputs["u"] = inputs["u"].contiguous(memory_format=memory_format)
        for backend in ("reference", "torch", "cpu"):
            with mtlkit.use_backend(backend):
                assert ss2d(**inputs).is_contiguous(memory_format=memory_format), backend


def test_strided_gradient_of_the_output():
    shape = SHAPES[0]
    inputs = shape.inputs(requires_grad=True)
    dy = torch.randn(shape.B, shape.D, shape.H, 2 * shape.W)[..., ::2]
    got = torch.autograd.grad(ss2d(**inputs), list(inputs.values()), dy)
    dense = torch.autograd.grad(ss2d(**inputs), list(inputs.values()), dy.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(got, dense, strict=True))
    one = torch.autograd.grad(ss2d(**inputs).sum(), list(inputs.values()))  # an expanded gradient, of stride 0
    ones = torch.autograd.grad(ss2d(**inputs), list(inputs.values()), torch.ones(shape.B, shape.D, shape.H, shape.W))
    assert all(torch.equal(a, b) for a, b in zip(one, ones, strict=True))


def test_mixed_dtypes():
    """Activations in 16 bits beside parameters in 32, as autocast leaves them."""
    shape = SHAPES[0]
    inputs = shape.inputs()
    for name in ("u", "x_dbl"):
        inputs[name] = inputs[name].bfloat16()
    dy = gradient_of_output(inputs).bfloat16()
    reference = run("reference", {name: t.double() for name, t in inputs.items()}, dy)
    got, beside = run("cpu", inputs, dy), run("torch", inputs, dy)
    for name in got:
        assert got[name].dtype == (torch.bfloat16 if name in ("y", "u", "x_dbl") else torch.float32)
        assert_accurate(name, got[name], reference[name], beside[name], gradient=name != "y")


def test_float32_output_of_float16_input():
    """The output may pass float16's range; asked for in float32 it does not overflow."""
    inputs = SHAPES[0].inputs(torch.float16)
    inputs["Ds"] = torch.full_like(inputs["Ds"], 6e4)
    inputs["u"] = inputs["u"].clamp(0.5, 2)
    assert not ss2d(**inputs).isfinite().all()
    wide = ss2d(**inputs, out_dtype=torch.float32)
    assert wide.dtype == torch.float32
    with mtlkit.use_backend("reference"):
        assert_accurate("y", wide, ss2d(**{name: t.double() for name, t in inputs.items()}))


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_empty_batch(backend):
    inputs = SS2DShape(0, 8, 5, 4, 16, 2).inputs(requires_grad=True)
    with mtlkit.use_backend(backend):
        y = ss2d(**inputs)
    assert y.shape == (0, 8, 5, 4)
    y.sum().backward()
    for name, t in inputs.items():
        assert t.grad.shape == t.shape
        assert not t.grad.any(), name


def test_gradcheck():
    shape = SS2DShape(1, 3, 3, 4, 2, 2)
    inputs = shape.inputs(torch.float64, requires_grad=True)
    with mtlkit.use_backend("cpu"):
        assert torch.autograd.gradcheck(lambda *args: ss2d(*args), tuple(inputs.values()))


def test_some_inputs_need_no_gradient():
    shape = SHAPES[0]
    inputs = shape.inputs()
    whole = run("cpu", inputs)
    inputs["A_logs"].requires_grad_()
    ss2d(**inputs).backward(gradient_of_output(inputs).float())
    assert torch.equal(inputs["A_logs"].grad, whole["A_logs"])
    assert all(inputs[name].grad is None for name in NAMES if name != "A_logs")


def test_nothing_is_kept_without_gradients(monkeypatch):
    sizes = []
    allocate = torch.empty

    def recorded(*args, **options):
        tensor = allocate(*args, **options)
        sizes.append(tensor.numel())
        return tensor

    monkeypatch.setattr(torch, "empty", recorded)
    with torch.no_grad():
        ss2d(**SHAPES[0].inputs(requires_grad=True))
    assert not any(sizes)


def test_opcheck():
    inputs = SHAPES[1].inputs(requires_grad=True)
    torch.library.opcheck(OP, ("cpu", *inputs.values(), torch.float32, True))
    with torch.no_grad():
        y, checkpoints = OP("cpu", *inputs.values(), torch.float32, True)
    detached = [t.detach() for t in inputs.values()]
    torch.library.opcheck(torch.ops.mtlkit.ss2d_backward.default, ("cpu", y, *detached, checkpoints, torch.float32))


def test_compiles_whole_and_for_every_size():
    calls = []

    def backend(graph, _inputs):
        calls.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(lambda **k: ss2d(**k) * 2, fullgraph=True, dynamic=True, backend=backend)
    for B, H, W in ((2, 5, 7), (3, 5, 7), (4, 6, 9)):
        inputs = SS2DShape(B, 8, H, W, 16, 3).inputs()  # no two sizes of the first call are the same
        assert torch.equal(compiled(**inputs), ss2d(**inputs) * 2)
    assert len(calls) == 1


def test_compiled_gradients():
    torch._dynamo.reset()
    inputs = SHAPES[0].inputs(requires_grad=True)
    dy = torch.randn(SHAPES[0].B, SHAPES[0].D, SHAPES[0].H, SHAPES[0].W)
    compiled = torch.compile(lambda args: ss2d(**args), fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(ss2d(**inputs), list(inputs.values()), dy)
    got = torch.autograd.grad(compiled(inputs), list(inputs.values()), dy)
    assert all(torch.equal(a, b) for a, b in zip(got, eager, strict=True))


def test_autocast():
    inputs = SHAPES[0].inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ss2d(**inputs), ss2d(**SHAPES[0].inputs()))
        projected = torch.nn.functional.linear(inputs["u"].permute(0, 2, 3, 1), torch.eye(24)).permute(0, 3, 1, 2)
        assert projected.dtype == torch.bfloat16
        assert ss2d(**{**inputs, "u": projected}).dtype == torch.bfloat16


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_spreads_as_in_the_reference(name, value):
    inputs = SHAPES[0].inputs()
    flat = inputs[name].flatten().clone()
    flat[len(flat) // 2] = value
    inputs[name] = flat.view(inputs[name].shape)
    with mtlkit.use_backend("reference"):
        wanted = ss2d(**inputs)
    got = ss2d(**inputs)
    assert torch.equal(got.isnan(), wanted.isnan())
    finite = wanted.isfinite()
    assert torch.equal(got.isfinite(), finite)
    assert_accurate("the finite part", got[finite], wanted[finite].double())


def test_strong_decay_neither_overflows_nor_lingers():
    """Time steps of 30 and more: each token forgets all before it."""
    inputs = SHAPES[0].inputs()
    inputs["dt_bias"] = inputs["dt_bias"] + 40
    for backend in ("torch", "cpu"):
        got, wanted = run(backend, inputs), run("reference", {k: t.double() for k, t in inputs.items()})
        for name in got:
            assert got[name].isfinite().all()
            assert_accurate(name, got[name], wanted[name], gradient=name != "y")


def test_no_decay_gives_a_cumulative_sum():
    shape = SS2DShape(1, 4, 3, 5, 1, 1)
    inputs = shape.inputs(torch.float64)
    inputs["A_logs"] = torch.full_like(inputs["A_logs"], -60.0)
    us, rows = cross_scan(inputs["u"]), cross_scan(inputs["x_dbl"])
    dt = torch.nn.functional.softplus(
        torch.einsum("bkrl,kdr->bkdl", rows[:, :, :1], inputs["dt_weight"]) + inputs["dt_bias"][None, :, :, None]
    )
    sums = (dt * us * rows[:, :, 1:2]).cumsum(-1) * rows[:, :, 2:3]
    wanted = cross_merge(sums + inputs["Ds"].view(1, 4, -1, 1) * us, shape.H, shape.W)
    assert_accurate("y", ss2d(**inputs), wanted)


def test_cross_merge_undoes_cross_scan():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert torch.allclose(cross_merge(cross_scan(x), 4, 5), 4 * x)


def test_second_derivative_raises():
    """Also where another term of the loss has second derivatives, so that none is silently left out."""
    inputs = SHAPES[1].inputs(requires_grad=True)
    y = ss2d(**inputs)
    (du,) = torch.autograd.grad(y.sum(), inputs["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="ss2d has first-order gradients only"):
        (du.square().sum() + inputs["u"].square().sum()).backward()


def test_vmap_raises():
    inputs = SHAPES[1].inputs()
    with pytest.raises(RuntimeError, match="vmap"):
        torch.vmap(lambda u: ss2d(**{**inputs, "u": u[None]}))(inputs["u"])


def changed(**changes) -> dict:
    return {**SHAPES[0].inputs(), **changes}


BAD = [
    (changed(u=3.0), TypeError, "u: expected a tensor, got float"),
    (changed(u=torch.zeros(2, 24, 7, 5, dtype=torch.int64)), TypeError, "u: expected float32.*got torch.int64"),
    (changed(u=torch.zeros(24, 7, 5)), ValueError, "u: expected 4 dimensions, got 3"),
    (changed(u=torch.zeros(2, 24, 0, 5)), ValueError, "u: expected shape .*at least 1, got"),
    (changed(u=torch.zeros(2, 25, 7, 5)), ValueError, r"dt_weight: expected shape \(4, D, R\) = \(4, 25, 3\)"),
    (changed(x_dbl=torch.zeros(2, 4, 34, 7, 5)), ValueError, r"x_dbl: expected shape .*\(2, 4, 35, 7, 5\), got"),
    (changed(dt_weight=torch.zeros(4, 24, 0)), ValueError, "dt_weight: expected .*R at least 1"),
    (changed(A_logs=torch.zeros(96, 0)), ValueError, "A_logs: expected .*N at least 1"),
    (changed(Ds=torch.zeros(24)), ValueError, r"Ds: expected shape \(4 D,\) = \(96,\), got \(24,\)"),
    (changed(dt_bias=torch.zeros(4, 24, device="meta")), ValueError, "dt_bias: expected device cpu.*got meta"),
    (changed(u=torch.zeros(2, 24, 7, 5).to_sparse()), ValueError, "u: expected a dense tensor"),
    (changed(out_dtype=torch.int32), TypeError, "out_dtype: expected"),
]


@pytest.mark.parametrize(("inputs", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(inputs, error, message):
    with pytest.raises(error, match=message):
        ss2d(**inputs)


def test_states_beyond_the_kernels_limit():
    inputs = SS2DShape(1, 2, 2, 2, MAX_STATES + 1, 1).inputs()
    with mtlkit.use_backend("cpu"), pytest.raises(ValueError, match=f"at most {MAX_STATES} states"):
        ss2d(**inputs)
    with mtlkit.use_backend("torch"):
        wanted = ss2d(**inputs)
    assert torch.equal(ss2d(**inputs), wanted)


def test_checkpoint_interval_is_the_kernels():
    from mtlkit import _native

    assert _native.C.checkpoint_tokens == CHECKPOINT_TOKENS
