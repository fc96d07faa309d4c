"""The fused pair equals its two parts, in every backend, with gradients and compiled."""

import pytest
import torch
from torch import Tensor

import mtlkit
from mtlkit import _native
from mtlkit.ops import norm_gate, ss2d, ss2d_norm_gate
from mtlkit.testing import SS2DShape, assert_accurate

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")

SHAPES = [SS2DShape(2, 6, 5, 7, 4, 3), SS2DShape(1, 1, 1, 1, 1, 1), SS2DShape(3, 17, 1, 4, 2, 2)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def make(shape: SS2DShape, dtype=torch.float32, absent: str = "", **options) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    gate = normal(shape.B, shape.H, shape.W, 2 * shape.D).chunk(2, -1)[1]  # a view, as in the layer
    tensors = shape.inputs(dtype, **options) | {"weight": normal(shape.D), "bias": normal(shape.D), "z": gate}
    return {name: t for name, t in tensors.items() if name not in absent.split()}


def parts(weight=None, bias=None, z=None, eps=1e-5, out_dtype=None, **scan) -> Tensor:
    return norm_gate(ss2d(**scan, out_dtype=out_dtype).permute(0, 2, 3, 1), weight, bias, z, eps)


def results(function, tensors: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    with mtlkit.use_backend(backend):
        out = function(**leaves)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(5)).to(out.dtype)
    gradients = torch.autograd.grad(out, list(leaves.values()), weights)
    return {"out": out.detach(), **{f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("absent", ["", "z", "weight bias", "weight bias z"])
def test_accurate(dtype, absent):
    for shape in SHAPES:
        for memory_format in (torch.channels_last, torch.contiguous_format):
            tensors = make(shape, dtype, absent, memory_format=memory_format)
            got = results(ss2d_norm_gate, tensors, "cpu")
            exact = results(ss2d_norm_gate, {name: t.double() for name, t in tensors.items()}, "reference")
            plain = results(ss2d_norm_gate, tensors, "torch")
            for name, value in got.items():
                assert value.dtype == dtype
                if shape.D > 1 or name == "out":  # for one channel, the gradient through the norm is rounding error
                    assert_accurate(name, value, exact[name], plain[name], gradient=name != "out")


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits_as_the_parts(shape, backend):
    tensors = make(shape)
    fused, composed = results(ss2d_norm_gate, tensors, backend), results(parts, tensors, backend)
    assert all(torch.equal(fused[name], composed[name]) for name in composed)
    with torch.no_grad(), mtlkit.use_backend(backend):
        assert torch.equal(ss2d_norm_gate(**tensors), composed["out"])


def test_float32_output_of_float16_input():
    tensors = make(SHAPES[0], torch.float16)
    tensors["Ds"] = torch.full_like(tensors["Ds"], 6e4)
    assert ss2d_norm_gate(**tensors, out_dtype=torch.float32).isfinite().all()
    assert torch.equal(ss2d_norm_gate(**tensors, out_dtype=torch.float32), parts(**tensors, out_dtype=torch.float32))


def test_opcheck():
    tensors = [t.detach().requires_grad_() for t in make(SHAPES[0]).values()]
    torch.library.opcheck(torch.ops.mtlkit.ss2d_norm_gate.default, ("cpu", *tensors, 1e-5, torch.float32, True))


def test_gradcheck():
    tensors = [t.detach().requires_grad_() for t in make(SS2DShape(1, 3, 2, 3, 2, 1), torch.float64).values()]
    with mtlkit.use_backend("cpu"):
        assert torch.autograd.gradcheck(ss2d_norm_gate, tensors)


def test_compiles_once_for_all_batch_sizes():
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda args: 2 * ss2d_norm_gate(**args), backend=counter, fullgraph=True)
    for batch in (2, 3, 5):
        leaves = {n: t.detach().requires_grad_() for n, t in make(SS2DShape(batch, 6, 4, 5, 4, 3)).items()}
        for name in ("u", "x_dbl", "z"):
            torch._dynamo.mark_dynamic(leaves[name], 0)
        got, want = compiled(leaves), 2 * ss2d_norm_gate(**leaves)
        assert torch.equal(got, want)
        for a, b in zip(*(torch.autograd.grad(y.sum(), list(leaves.values())) for y in (got, want)), strict=True):
            torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
def test_empty_batch(backend):
    got = results(ss2d_norm_gate, make(SS2DShape(0, 6, 4, 5, 4, 3)), backend)
    assert got["out"].shape == (0, 4, 5, 6)
    assert not any(got[name].any() for name in got)


def test_second_backward_raises():
    leaves = {name: t.detach().requires_grad_() for name, t in make(SHAPES[0]).items()}
    (du,) = torch.autograd.grad(ss2d_norm_gate(**leaves).square().sum(), [leaves["u"]], create_graph=True)
    with pytest.raises(RuntimeError, match="ss2d_norm_gate has first-order gradients only"):
        du.sum().backward()


def test_the_norm_frees_what_it_saved_before_the_scan_runs():
    leaves = {name: t.requires_grad_() for name, t in make(SHAPES[0]).items()}
    out = ss2d_norm_gate(**leaves)
    norm = out.grad_fn
    permute = next(node for node, _ in norm.next_functions if node.name() == "PermuteBackward0")
    scan, freed = permute.next_functions[0][0], []

    def look(_grads) -> None:
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            norm.saved_tensors  # noqa: B018 - it raises
        freed.append(True)

    scan.register_prehook(look)
    out.sum().backward()
    assert freed


def test_writes_every_element(poisoned):
    tensors = make(SHAPES[0])
    assert all(value.isfinite().all() for value in results(ss2d_norm_gate, tensors, "cpu").values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_dbl": torch.ones(2, 4, 11, 5, 6)}, r"x_dbl: expected shape \(B, 4, R \+ 2 N, H, W\) = \(2, 4, 11, 5, 7\)"),
        ({"weight": torch.ones(5)}, r"weight: expected shape \(D,\) = \(6,\), got \(5,\)"),
        ({"z": torch.ones(2, 5, 6, 6)}, r"z: expected shape .* = \(2, 5, 7, 6\), got \(2, 5, 6, 6\)"),
        ({"eps": -1}, "eps: expected a number that is at least 0, got -1"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        ss2d_norm_gate(**make(SHAPES[0]) | change)
