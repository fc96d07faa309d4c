from functools import partial

import pytest
import torch
from torch import Tensor

import mtlkit
from harness import cpu_calls
from mtlkit import _native
from mtlkit.ops import dwconv_silu
from mtlkit.testing import assert_accurate

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "channels_last", "half", "sparse"]
# one pixel, one row, one column, one channel; channels below, at and beside whole vectors; H != W
SHAPES = [(1, 1, 1, 1), (2, 3, 1, 5), (1, 33, 6, 1), (2, 1, 4, 9), (3, 20, 2, 4), (1, 16, 5, 8), (1, 100, 13, 11)]
NAMES = ("x", "weight", "bias")


def in_layout(x: Tensor, layout: str) -> Tensor:
    """The same numbers: dense in either format, half of twice as many channels, or every second pixel of an image."""
    batch, channels, height, width = x.shape
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "half":
        home = x.new_full((batch, height, width, 2 * channels), float("nan"))[..., :channels].permute(0, 3, 1, 2)
    else:
        home = x.new_full((batch, channels, 2 * height, 2 * width), float("nan"))[:, :, ::2, ::2]
    return home.copy_(x)


def make(shape, dtype=torch.float32, layout="channels_last", bias=True) -> list[Tensor | None]:
    channels = shape[1]
    x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(channels, 1, 3, 3, dtype=torch.float64) / 2
    return [in_layout(x.to(dtype), layout), weight.to(dtype), torch.randn(channels).to(dtype) if bias else None]


run, check = partial(cpu_calls.run, dwconv_silu, NAMES), partial(cpu_calls.check, dwconv_silu, NAMES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_accurate(dtype, layout):
    for shape in SHAPES:
        dy = in_layout(torch.randn(shape).to(dtype), LAYOUTS[LAYOUTS.index(layout) - 1])
        y = check(make(shape, dtype, layout, bias=shape[1] != 20), dy)["y"]
        last = shape[1] > 1 and make(shape, dtype, layout)[0].stride(1) == 1
        assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set(isa, dtype):
    for layout in ("contiguous", "half"):
        check(make((2, 37, 6, 9), dtype, layout), torch.randn(2, 37, 6, 9).to(dtype))


def test_thread_counts_agree(threads):
    inputs, dy = make((1, 20, 9, 5)), torch.randn(1, 20, 9, 5)
    results = []
    for count in (1, 2, 3, 16):
        threads(count)
        results.append(check(inputs, dy))
    for other in results[1:]:
        assert torch.equal(results[0]["y"], other["y"])
        assert torch.equal(results[0]["dx"], other["dx"])


def test_repeats_bit_by_bit():
    inputs, dy = make((3, 50, 14, 9)), torch.randn(3, 50, 14, 9)
    first, again = run("cpu", inputs, dy), run("cpu", inputs, dy)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("layout", ["contiguous", "half"])
def test_writes_every_element(poisoned, layout):
    check(make((2, 19, 5, 6), layout=layout), torch.randn(2, 19, 5, 6))


def test_mixed_dtypes():
    x, weight, bias = make((1, 20, 5, 6))
    mixed = run("cpu", [x.bfloat16(), weight, bias.double()], torch.ones(1, 20, 5, 6).bfloat16())
    assert [mixed[name].dtype for name in ("y", "dx", "dweight", "dbias")] == [
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    ]
    exact = run("reference", [x.bfloat16().double(), weight.double(), bias.double()], torch.ones(1, 20, 5, 6).double())
    assert_accurate("dweight", mixed["dweight"], exact["dweight"], gradient=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_nan_and_inf_go_where_the_reference_sends_them(value, where):
    inputs = make((1, 18, 4, 5))
    inputs[where][{0: (0, 7, 1, 4), 1: (7, 0, 0, 2), 2: 7}[where]] = value
    dy = torch.randn(1, 18, 4, 5)
    got, exact = run("cpu", inputs, dy), run("reference", inputs, dy)
    for name in got:
        torch.testing.assert_close(got[name], exact[name], rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)
    assert got["y"].isnan().any() or value == float("inf")


def test_empty_batch():
    got = run("cpu", make((0, 5, 3, 4)), torch.randn(0, 5, 3, 4))
    assert got["y"].shape == got["dx"].shape == (0, 5, 3, 4)
    assert not got["dweight"].any()
    assert not got["dbias"].any()


def test_expanded_gradient():
    inputs = make((2, 17, 3, 4))
    check(inputs, torch.ones(()).expand(2, 17, 3, 4))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(layout):
    inputs = [t.requires_grad_() for t in make((2, 3, 4, 3), torch.float64, layout)]
    with mtlkit.use_backend("cpu"):
        assert torch.autograd.gradcheck(dwconv_silu, inputs)


def test_second_backward_raises():
    inputs = [t.requires_grad_() for t in make((1, 4, 3, 3))]
    with mtlkit.use_backend("cpu"):
        (dx,) = torch.autograd.grad(dwconv_silu(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="dwconv_silu has first-order gradients only"):
        dx.sum().backward()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "half"])
def test_opcheck(layout, bias):
    inputs = [None if t is None else t.requires_grad_() for t in make((2, 5, 4, 3), layout=layout, bias=bias)]
    torch.library.opcheck(torch.ops.mtlkit.dwconv_silu.default, ("cpu", *inputs))


def test_compiles_once_for_all_batch_sizes():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(lambda x, w, b: 2 * dwconv_silu(x + 1, w, b), backend=counter, fullgraph=True)
    with mtlkit.use_backend("cpu"):
        for batch in (2, 3, 5):
            x, weight, bias = (t.requires_grad_() for t in make((batch, 6, 4, 5)))
            torch._dynamo.mark_dynamic(x, 0)
            y = compiled(x, weight, bias)
            want = 2 * dwconv_silu(x + 1, weight, bias)
            torch.testing.assert_close(y, want)
            got = torch.autograd.grad(y.square().sum(), (x, weight, bias))
            torch.testing.assert_close(got, torch.autograd.grad(want.square().sum(), (x, weight, bias)))
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_autocast_leaves_the_dtype_alone(backend):
    x, weight, bias = make((1, 8, 4, 5))
    with mtlkit.use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        assert dwconv_silu(x, weight, bias).dtype == torch.float32
        got = dwconv_silu(x.bfloat16(), weight, bias)
    assert got.dtype == torch.bfloat16
    with mtlkit.use_backend("reference"):
        exact = dwconv_silu(x.bfloat16().double(), weight.double(), bias.double())
    assert (got - exact).norm() < 2e-2 * exact.norm()


BAD = {
    "x: expected a tensor, got list": ({"x": [1.0]}, TypeError),
    "x: expected float32, .* got torch.int64": ({"x": torch.ones(1, 4, 3, 3, dtype=torch.int64)}, TypeError),
    "x: expected 4 dimensions, got 3": ({"x": torch.ones(4, 3, 3)}, ValueError),
    r"x: expected .* at least 1, got \(1, 4, 0, 3\)": ({"x": torch.ones(1, 4, 0, 3)}, ValueError),
    r"weight: expected shape \(D, 1, 3, 3\) = \(4, 1, 3, 3\), got \(4, 1, 5, 5\)": (
        {"weight": torch.ones(4, 1, 5, 5)},
        ValueError,
    ),
    r"bias: expected shape \(D,\) = \(4,\), got \(3,\)": ({"bias": torch.ones(3)}, ValueError),
    "bias: expected device cpu, where x is, got meta": ({"bias": torch.ones(4, device="meta")}, ValueError),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    change, error = BAD[message]
    arguments = {"x": torch.ones(1, 4, 3, 3), "weight": torch.ones(4, 1, 3, 3), "bias": torch.ones(4)} | change
    with pytest.raises(error, match=message):
        dwconv_silu(**arguments)
