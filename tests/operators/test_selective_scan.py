"""selective_scan: every backend against the reference in float64, over the argument combinations of mamba-ssm."""

from functools import cache

import pytest
import torch

import mtlkit
from mtlkit.operators._launch import MAX_STATES
from mtlkit.ops import selective_scan
from mtlkit.testing import SelectiveScanShape, assert_accurate

OP = torch.ops.mtlkit.selective_scan.default
SHAPES = [
    SelectiveScanShape(2, 24, 35, 16),
    SelectiveScanShape(1, 5, 1, 1),
    SelectiveScanShape(1, 1, 33, 16),
    SelectiveScanShape(3, 18, 64, 3, G=3),
    SelectiveScanShape(1, 33, 31, 40),
    SelectiveScanShape(2, 16, 97, 1, G=2),
    SelectiveScanShape(1, 12, 70, 4, G=12),
    SelectiveScanShape(2, 17, 40, 8, G=0),
    SelectiveScanShape(1, 7, 513, 2),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
OPTIONAL = ("D", "z", "delta_bias")


def scan(**inputs):
    """With softplus, without which the random time steps would be negative."""
    return selective_scan(**inputs, delta_softplus=True)


def run(backend: str, inputs: dict, softplus: bool = True) -> dict:
    """Output, last state and gradients by name, of a loss on both."""
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    with mtlkit.use_backend(backend):
        out, last = selective_scan(**leaves, delta_softplus=softplus, return_last_state=True)
    generator = torch.Generator().manual_seed(7)
    dout, dlast = (torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (out, last))
    torch.autograd.backward((out, last), (dout, dlast))
    return {"out": out.detach(), "last": last.detach(), **{name: t.grad for name, t in leaves.items()}}


def doubles(inputs: dict) -> dict:
    return {name: t.double() for name, t in inputs.items()}


@cache
def exact(shape: SelectiveScanShape, dtype: torch.dtype) -> dict:
    return run("reference", doubles(shape.inputs(dtype)))


@cache
def plain(shape: SelectiveScanShape, dtype: torch.dtype) -> dict:
    return run("torch", shape.inputs(dtype))


def check(got: dict, wanted: dict, beside: dict) -> None:
    for name, value in got.items():
        assert_accurate(name, value, wanted[name], beside[name], gradient=name not in ("out", "last"))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_output_and_gradients(backend, dtype, shape, poisoned):
    got = run(backend, shape.inputs(dtype))
    assert got["last"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(t.dtype == dtype for name, t in got.items() if name != "last")
    check(got, exact(shape, dtype), plain(shape, dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_instruction_set(isa, dtype, shape):
    check(run("cpu", shape.inputs(dtype)), exact(shape, dtype), plain(shape, dtype))


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("constant", [(), ("B",), ("C",), ("B", "C")], ids=str)
@pytest.mark.parametrize("left_out", [(), ("D",), ("z",), ("delta_bias",), OPTIONAL], ids=str)
def test_argument_combinations(left_out, constant, softplus):
    inputs = SelectiveScanShape(2, 18, 40, 4).inputs()
    fixed = SelectiveScanShape(2, 18, 40, 4, G=0).inputs(seed=1)
    inputs = {name: t for name, t in inputs.items() if name not in left_out} | {name: fixed[name] for name in constant}
    if not softplus:
        inputs["delta"] = inputs["delta"].abs() * 0.1
        if "delta_bias" in inputs:
            inputs["delta_bias"] = inputs["delta_bias"].abs() * 0.01
    wanted = run("reference", doubles(inputs), softplus)
    for backend in ("torch", "cpu"):
        check(run(backend, inputs, softplus), wanted, wanted)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 31, 32, 33, 63, 64, 65, 1000, 4097])
@pytest.mark.parametrize("groups", [1, 2])
def test_lengths(length, groups):
    inputs = SelectiveScanShape(1, 6, length, 2, G=groups).inputs()
    with mtlkit.use_backend("torch"):
        wanted, last = selective_scan(**doubles(inputs), delta_softplus=True, return_last_state=True)
    got, got_last = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
    assert_accurate("out", got, wanted)
    assert_accurate("last", got_last, last)


def test_published_semantics_in_closed_form():
    """One channel and one state, without softplus: h_t = exp(dt A) h_{t-1} + dt u B, worked out by hand."""
    u, delta = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[0.5, 0.25, 1.0]]])
    B, C = torch.tensor([[[1.0, -1.0, 2.0]]]), torch.tensor([[[2.0, 1.0, 0.5]]])
    A, D, z = torch.tensor([[-2.0]]), torch.tensor([3.0]), torch.tensor([[[0.0, 1.0, -1.0]]])
    h1 = 0.5
    h2 = h1 * torch.tensor(-0.5).exp() - 0.5
    h3 = h2 * torch.tensor(-2.0).exp() + 6
    y = torch.stack([2 * torch.tensor(h1) + 3, h2 + 6, 0.5 * h3 + 9])
    wanted = (y * torch.nn.functional.silu(z[0, 0])).view(1, 1, 3)
    for backend in ("reference", "torch", "cpu"):
        with mtlkit.use_backend(backend):
            out, last = selective_scan(u, delta, A, B, C, D, z, return_last_state=True)
        torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(last, h3.view(1, 1, 1), rtol=1e-6, atol=1e-6)


def test_groups_of_one_are_a_batch_of_rows():
    """(B, 1, N, L) and (B, N, L) mean the same."""
    inputs = SHAPES[0].inputs()
    grouped = {**inputs, "B": inputs["B"][:, None], "C": inputs["C"][:, None]}
    assert torch.equal(scan(**inputs), scan(**grouped))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_threads_share_the_work(threads, shape, count):
    threads(count)
    got = run("cpu", shape.inputs())
    check(got, exact(shape, torch.float32), plain(shape, torch.float32))
    for _ in range(3):
        again = run("cpu", shape.inputs())
        assert all(torch.equal(got[name], again[name]) for name in got)


@pytest.mark.parametrize("name", ["u", "delta", "z", "B", "C"])
@pytest.mark.parametrize("layout", ["channels inside", "every other token", "expanded"])
def test_layouts(layout, name):
    shape = SHAPES[0]
    inputs = shape.inputs()
    dense = inputs[name]
    if layout == "channels inside":
        view = dense.transpose(1, 2).contiguous().transpose(1, 2)
    elif layout == "every other token":
        view = torch.zeros(*dense.shape[:2], 2 * dense.shape[2])[..., ::2].copy_(dense)
    else:
        view = dense[:1].expand_as(dense)
        inputs[name] = view.contiguous()
    wanted = run("cpu", inputs)
    got = run("cpu", {**inputs, name: view})
    assert all(torch.equal(got[key], wanted[key]) for key in got)


def test_strided_gradient_of_the_output():
    inputs = SHAPES[0].inputs(requires_grad=True)
    dout = torch.randn(2, 35, 24).transpose(1, 2)
    got = torch.autograd.grad(scan(**inputs), list(inputs.values()), dout)
    dense = torch.autograd.grad(scan(**inputs), list(inputs.values()), dout.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(got, dense, strict=True))


def test_mixed_dtypes():
    inputs = SHAPES[0].inputs()
    for name in ("u", "delta", "B", "C", "z"):
        inputs[name] = inputs[name].bfloat16()
    wanted, got, beside = run("reference", doubles(inputs)), run("cpu", inputs), run("torch", inputs)
    assert got["A"].dtype == torch.float32
    assert got["u"].dtype == torch.bfloat16
    # the gradient of the output is rounded to bfloat16 too: every gradient is judged beside plain PyTorch's
    for name in got:
        assert_accurate(name, got[name].bfloat16(), wanted[name], beside[name], gradient=True)


@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_empty_batch(backend):
    inputs = SelectiveScanShape(0, 6, 9, 4).inputs(requires_grad=True)
    with mtlkit.use_backend(backend):
        out, last = selective_scan(**inputs, return_last_state=True)
    assert out.shape == (0, 6, 9)
    assert last.shape == (0, 6, 4)
    (out.sum() + last.sum()).backward()
    assert all(t.grad.shape == t.shape and not t.grad.any() for t in inputs.values())


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_gradcheck(groups):
    inputs = SelectiveScanShape(1, 4, 5, 2, G=groups).inputs(torch.float64, requires_grad=True)
    with mtlkit.use_backend("cpu"):
        assert torch.autograd.gradcheck(lambda *a: selective_scan(*a, True, True), tuple(inputs.values()))


def test_opcheck():
    inputs = SHAPES[0].inputs(requires_grad=True)
    torch.library.opcheck(OP, ("cpu", *inputs.values(), True, True))
    some = {**inputs, "D": None, "z": None, "delta_bias": None}
    torch.library.opcheck(OP, ("cpu", *some.values(), True, True))
    detached = [t.detach() for t in inputs.values()]
    out, last, *kept = OP("cpu", *detached, True, True)
    arguments = ("cpu", out, last, *detached, *kept, True)
    torch.library.opcheck(torch.ops.mtlkit.selective_scan_backward.default, arguments)


def test_compiles_whole_and_for_every_size():
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(scan, fullgraph=True, dynamic=True, backend=backend)
    for B, L in ((2, 35), (3, 35), (4, 60)):
        inputs = SelectiveScanShape(B, 24, L, 16).inputs()
        assert torch.equal(compiled(**inputs), scan(**inputs))
    assert len(graphs) == 1


def test_compiled_gradients():
    torch._dynamo.reset()
    inputs = SHAPES[3].inputs(requires_grad=True)
    compiled = torch.compile(lambda args: scan(**args), fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(scan(**inputs).square().sum(), list(inputs.values()))
    got = torch.autograd.grad(compiled(inputs).square().sum(), list(inputs.values()))
    assert all(torch.equal(a, b) for a, b in zip(got, eager, strict=True))


def test_autocast():
    inputs = SHAPES[0].inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scan(**inputs), scan(**SHAPES[0].inputs()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["u", "delta", "B", "C", "D", "z", "A"])
def test_what_is_not_finite_spreads_as_in_the_reference(name, value):
    inputs = SHAPES[0].inputs()
    flat = inputs[name].flatten().clone()
    flat[len(flat) // 2] = -value if name == "A" else value
    inputs[name] = flat.view(inputs[name].shape)
    with mtlkit.use_backend("reference"):
        wanted = scan(**inputs)
    got = scan(**inputs)
    assert torch.equal(got.isnan(), wanted.isnan())
    finite = wanted.isfinite()
    assert torch.equal(got.isfinite(), finite)
    assert_accurate("the finite part", got[finite], wanted[finite].double())


def test_second_derivative_raises():
    inputs = SHAPES[1].inputs(requires_grad=True)
    (du,) = torch.autograd.grad(scan(**inputs).sum(), inputs["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="selective_scan has first-order gradients only"):
        (du.sum() + inputs["u"].square().sum()).backward()


def test_public_alias():
    assert mtlkit.selective_scan_fn is selective_scan


def changed(**changes) -> dict:
    return {**SHAPES[0].inputs(), **changes}


BAD = [
    (changed(u=None), TypeError, "u: expected a tensor, got NoneType"),
    (changed(u=torch.zeros(2, 24)), ValueError, "u: expected 3 dimensions, got 2"),
    (changed(u=torch.zeros(2, 24, 0)), ValueError, "u: expected shape .*at least 1"),
    (changed(delta=torch.zeros(2, 24, 34)), ValueError, r"delta: expected shape \(B, D, L\) = \(2, 24, 35\), got"),
    (changed(A=torch.zeros(24, 16, dtype=torch.complex64)), TypeError, "A: expected a real tensor"),
    (changed(A=torch.zeros(23, 16)), ValueError, r"A: expected shape \(D, N\) = \(24, 16\)"),
    (changed(A=torch.zeros(24, 0)), ValueError, "A: expected .*N at least 1"),
    (changed(B=torch.zeros(2, 15, 35)), ValueError, r"B: expected shape \(B, N, L\) = \(2, 16, 35\)"),
    (changed(B=torch.zeros(2, 5, 16, 35)), ValueError, "B: expected groups G that divide D = 24, got G = 5"),
    (changed(B=torch.zeros(2, 2, 16, 35)), ValueError, "C: expected as many groups as B has, 2, got 1"),
    (changed(C=torch.zeros(24, 16, dtype=torch.int32)), TypeError, "C: expected float32.*got torch.int32"),
    (changed(D=torch.zeros(2, 24)), ValueError, "D: expected 1 dimensions, got 2"),
    (changed(z=torch.zeros(2, 24, 36)), ValueError, "z: expected shape"),
    (changed(delta_bias=torch.zeros(24, device="meta")), ValueError, "delta_bias: expected device cpu.*got meta"),
]


@pytest.mark.parametrize(("inputs", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(inputs, error, message):
    with pytest.raises(error, match=message):
        selective_scan(**inputs)


def test_states_beyond_the_kernels_limit():
    inputs = SelectiveScanShape(1, 2, 3, MAX_STATES + 1).inputs()
    with mtlkit.use_backend("cpu"), pytest.raises(ValueError, match=f"at most {MAX_STATES} states"):
        selective_scan(**inputs)
    assert scan(**inputs).isfinite().all()
    most = SelectiveScanShape(1, 2, 3, MAX_STATES).inputs()
    with mtlkit.use_backend("reference"):
        wanted = scan(**doubles(most))
    assert_accurate("out", scan(**most), wanted)
