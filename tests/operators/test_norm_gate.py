from functools import partial

import pytest
import torch
from torch import Tensor

import mtlkit
from harness import cpu_calls
from mtlkit import _native
from mtlkit.ops import norm_gate
from mtlkit.testing import assert_accurate

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "half", "channels_first", "odd_rows"]
# one row, one channel; channels below, at and beside whole vectors; more and fewer rows than a vector has lanes
SHAPES = [(1,), (5,), (4, 1), (2, 3, 3, 7), (1, 33, 16), (2, 5, 37), (3, 1, 2, 100), (1, 7, 11, 96), (2, 768)]
NAMES = ("x", "weight", "bias", "z")


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The same numbers: dense, one half of twice as many channels, channels in the first place, or every second row."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "half":
        home = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))[..., x.shape[-1] :]
    elif layout == "channels_first":
        home = torch.empty_like(x.movedim(-1, 0).contiguous()).movedim(0, -1)
    else:
        home = x.new_full((2 * x.shape[0], *x.shape[1:]), float("nan"))[::2]
    return home.copy_(x)


def make(shape, dtype=torch.float32, layout="contiguous", absent: str = "") -> list[Tensor | None]:
    generous = {
        "x": in_layout((3 * torch.randn(shape, dtype=torch.float64) + 1).to(dtype), layout),
        "weight": torch.randn(shape[-1]).to(dtype),
        "bias": torch.randn(shape[-1]).to(dtype),
        "z": in_layout(torch.randn(shape, dtype=torch.float64).to(dtype), layout),
    }
    return [None if name in absent.split() else generous[name] for name in NAMES]


run = partial(cpu_calls.run, norm_gate, NAMES)


def check(inputs: list[Tensor | None], dy: Tensor) -> dict[str, Tensor]:
    got = cpu_calls.check(norm_gate, NAMES, inputs, dy)
    assert got["y"].is_contiguous()
    return got


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_accurate(dtype, layout):
    for shape in SHAPES:
        dy = in_layout(torch.randn(shape).to(dtype), LAYOUTS[LAYOUTS.index(layout) - 1])
        check(make(shape, dtype, layout), dy)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("absent", ["z", "weight", "bias", "weight bias", "weight bias z"])
def test_without_what_is_optional(dtype, absent):
    check(make((3, 5, 41), dtype, absent=absent), torch.randn(3, 5, 41).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(isa, dtype):
    for shape in ((2, 9, 37), (5, 64)):
        check(make(shape, dtype, "half"), torch.randn(shape).to(dtype))


def test_a_large_mean_does_not_drown_the_variance():
    x, weight, bias, z = make((4, 96))
    check([x + 1000, weight, bias, z], torch.randn(4, 96))


def test_constant_rows():
    x = torch.tensor([1.5, -2.0, 0.0, 1e9, 1e9 / 3])[:, None].expand(5, 41)
    _, weight, bias, z = make((5, 41))
    got = run("cpu", [x, weight, bias, z], torch.randn(5, 41))
    assert all(value.isfinite().all() for value in got.values())
    torch.testing.assert_close(got["y"][:3], (bias * torch.nn.functional.silu(z))[:3])


@pytest.mark.parametrize("eps", [0, 1e-12, 1e-5, 1.0])
def test_eps(eps):
    x, weight, bias, z = make((7, 33))
    with mtlkit.use_backend("cpu"):
        got = norm_gate(x, weight, bias, z, eps=eps)
    with mtlkit.use_backend("reference"):
        assert_accurate("y", got, norm_gate(x.double(), weight, bias, z, eps=eps))


def test_thread_counts_agree(threads):
    inputs, dy = make((45, 20)), torch.randn(45, 20)
    results = []
    for count in (1, 2, 3, 16, 64):
        threads(count)
        results.append(check(inputs, dy))
    for other in results[1:]:
        for name in ("y", "dx", "dz"):
            assert torch.equal(results[0][name], other[name])


def test_repeats_bit_by_bit():
    inputs, dy = make((300, 50)), torch.randn(300, 50)
    first, again = run("cpu", inputs, dy), run("cpu", inputs, dy)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("absent", ["", "weight z"])
def test_writes_every_element(poisoned, absent):
    check(make((21, 19), layout="half", absent=absent), torch.randn(21, 19))


def test_mixed_dtypes():
    x, weight, bias, z = make((6, 20))
    inputs = [x, weight.half(), bias.double(), z.bfloat16()]
    mixed = run("cpu", inputs, torch.ones(6, 20))
    exact = run("reference", [t.double() for t in inputs], torch.ones(6, 20).double())
    assert [mixed[name].dtype for name in ("y", "dx", "dweight", "dbias", "dz")] == [
        torch.float32,
        torch.float32,
        torch.float16,
        torch.float64,
        torch.bfloat16,
    ]
    assert_accurate("y", mixed["y"], exact["y"])
    assert_accurate("dx", mixed["dx"], exact["dx"], gradient=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", NAMES)
def test_nan_and_inf_go_where_the_reference_sends_them(value, name):
    inputs = make((20, 18))
    inputs[NAMES.index(name)][(5, 7) if name in "xz" else 7] = value
    dy = torch.randn(20, 18)
    got, exact = run("cpu", inputs, dy), run("reference", inputs, dy)
    torch.testing.assert_close(got["y"], exact["y"], rtol=1e-4, atol=1e-5, equal_nan=True)
    assert not got["y"].isfinite().all()
    # which of inf and NaN a gradient is depends on how its formula is written; that it is finite does not
    for key in got:
        finite = exact[key].isfinite()
        assert torch.equal(got[key].isfinite(), finite), key
        torch.testing.assert_close(got[key][finite], exact[key][finite], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 3, 7)])
def test_empty_batch(shape):
    got = run("cpu", make(shape), torch.randn(shape))
    assert got["y"].shape == got["dx"].shape == got["dz"].shape == shape
    assert not got["dweight"].any()
    assert not got["dbias"].any()


def test_expanded_tensors():
    x, weight, bias, z = make((6, 17))
    check([x[:1].expand(6, 17), weight, bias[:1].expand(17), z[:, :1].expand(6, 17)], torch.ones(()).expand(6, 17))


@pytest.mark.parametrize("absent", ["", "z", "weight", "bias"])
def test_gradcheck(absent):
    inputs = [None if t is None else t.requires_grad_() for t in make((3, 2, 5), torch.float64, "half", absent)]
    with mtlkit.use_backend("cpu"):
        assert torch.autograd.gradcheck(norm_gate, inputs)


def test_second_backward_raises():
    inputs = [t.requires_grad_() for t in make((3, 8))]
    with mtlkit.use_backend("cpu"):
        (dx,) = torch.autograd.grad(norm_gate(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="norm_gate has first-order gradients only"):
        dx.sum().backward()


@pytest.mark.parametrize("absent", ["", "bias", "weight z"])
def test_opcheck(absent):
    inputs = [None if t is None else t.requires_grad_() for t in make((2, 3, 5), layout="half", absent=absent)]
    torch.library.opcheck(torch.ops.mtlkit.norm_gate.default, ("cpu", *inputs, 1e-5))


def test_compiles_once_for_all_batch_sizes():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(lambda x, w, b, z: 2 * norm_gate(x + 1, w, b, z), backend=counter, fullgraph=True)
    with mtlkit.use_backend("cpu"):
        for batch in (2, 3, 5):
            inputs = [t.requires_grad_() for t in make((batch, 4, 6))]
            for t in (inputs[0], inputs[3]):
                torch._dynamo.mark_dynamic(t, 0)
            y = compiled(*inputs)
            want = 2 * norm_gate(inputs[0] + 1, *inputs[1:])
            torch.testing.assert_close(y, want)
            got = torch.autograd.grad(y.square().sum(), inputs)
            torch.testing.assert_close(got, torch.autograd.grad(want.square().sum(), inputs))
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_autocast_leaves_the_dtype_alone(backend):
    x, weight, bias, z = make((6, 8))
    with mtlkit.use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        assert norm_gate(x, weight, bias, z).dtype == torch.float32
        got = norm_gate(x.bfloat16(), weight, bias, z.bfloat16())
    assert got.dtype == torch.bfloat16
    with mtlkit.use_backend("reference"):
        exact = norm_gate(x.bfloat16().double(), weight, bias, z.bfloat16().double())
    assert (got - exact).norm() < 2e-2 * exact.norm()


BAD = {
    "x: expected a tensor, got NoneType": ({"x": None}, TypeError),
    "z: expected float32, .* got torch.complex64": ({"z": torch.ones(2, 4, dtype=torch.complex64)}, TypeError),
    r"x: expected shape \(..., D\) with D at least 1, got \(2, 0\)": ({"x": torch.ones(2, 0)}, ValueError),
    r"x: expected 1 or 2 .* dimensions, got 0": ({"x": torch.ones(())}, ValueError),
    r"weight: expected shape \(D,\) = \(4,\), got \(5,\)": ({"weight": torch.ones(5)}, ValueError),
    r"bias: expected 1 dimensions, got 2": ({"bias": torch.ones(1, 4)}, ValueError),
    r"z: expected shape .* = \(2, 4\), got \(1, 4\)": ({"z": torch.ones(1, 4)}, ValueError),
    "weight: expected device cpu, where x is, got meta": ({"weight": torch.ones(4, device="meta")}, ValueError),
    "eps: expected a number that is at least 0, got -1": ({"eps": -1}, ValueError),
    "eps: expected a number that is at least 0, got nan": ({"eps": float("nan")}, ValueError),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    change, error = BAD[message]
    arguments = {"x": torch.ones(2, 4), "weight": torch.ones(4), "bias": torch.ones(4), "z": torch.ones(2, 4)} | change
    with pytest.raises(error, match=message):
        norm_gate(**arguments)
