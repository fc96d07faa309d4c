"""Linear layers over the channels of pixels equal F.linear, by PyTorch and, in float32 on a CPU, by the kernels."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import mtlkit
from harness.fence import FENCES, fence
from mtlkit import _native
from mtlkit.operators.pixel_linear import PixelLinear, pixel_linear, pixel_linear_halves
from mtlkit.testing import assert_accurate

compiled_only = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")

SIZES = [(1, 1, 1, 1, 1), (2, 7, 5, 12, 9), (1, 3, 43, 50, 34), (1, 9, 16, 97, 140), (2, 13, 11, 200, 70)]


def leaves_of(*sizes: int, bias: bool = True) -> list[Tensor]:
    """x (..., C_in), weight (C_out, C_in), bias (C_out) and the gradient of the output."""
    generator = torch.Generator().manual_seed(3)
    *pixels, inputs, outputs = sizes
    shapes = [(*pixels, inputs), (outputs, inputs), *([(outputs,)] if bias else [])]
    found = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    return [*found, torch.randn(*pixels, outputs, generator=generator)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels called so far."""
    found: list[str] = []

    def spied(name: str, run: Callable[..., int]) -> Callable[..., int]:
        return lambda **arguments: found.append(name) or run(**arguments)

    for name in ("linear_forward", "linear_backward"):
        monkeypatch.setattr(_native.C, name, spied(name, getattr(_native.C, name)))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 7, 5, 12), (1, 1, 1, 12), (0, 3, 4, 12), (3, 12), (2, 9, 12), (0, 3, 12)])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_linear(dtype, shape, bias):
    x, weight = torch.randn(shape, dtype=dtype, requires_grad=True), torch.randn(9, 12, dtype=dtype)
    offset = torch.randn(9, dtype=dtype) if bias else None
    y, expected = pixel_linear(x, weight, offset), F.linear(x, weight, offset)
    torch.testing.assert_close(y, expected)
    direction = torch.randn_like(y)
    torch.testing.assert_close(*(torch.autograd.grad(t, x, direction)[0] for t in (y, expected)))


def test_layer_has_the_parameters_of_a_linear_layer():
    layer, plain = PixelLinear(4, 6), torch.nn.Linear(4, 6)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(layer(x), plain(x))


# --- the kernels ------------------------------------------------------------------------------------------------------


@compiled_only
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_accurate(isa, poisoned, calls, sizes, bias):
    *leaves, dy = leaves_of(*sizes, bias=bias)
    y = pixel_linear(*leaves)
    got = torch.autograd.grad(y, leaves, dy)
    assert calls == ["linear_forward", "linear_backward"]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    exact = F.linear(*wide)
    assert_accurate("y", y, exact)
    for name, g, e, t in zip(
        ("dx", "dweight", "dbias"), got, torch.autograd.grad(exact, wide, dy.double()), leaves, strict=False
    ):
        assert g.stride() == t.stride()
        assert_accurate(name, g, e, gradient=True)


@compiled_only
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_only_the_wanted_gradients(calls, wanted):
    *leaves, dy = leaves_of(*SIZES[2])
    every = torch.autograd.grad(pixel_linear(*leaves), leaves, dy)
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i in wanted)
    some = torch.autograd.grad(pixel_linear(*leaves), [leaves[i] for i in wanted], dy)
    assert all(torch.equal(g, every[i]) for g, i in zip(some, wanted, strict=True))


@compiled_only
@pytest.mark.parametrize("used", ["both", "first", "second"])
def test_halves_are_the_chunks(poisoned, calls, used):
    *leaves, dy = leaves_of(2, 5, 9, 20, 34)
    halves, chunks = pixel_linear_halves(*leaves), F.linear(*leaves).chunk(2, -1)
    assert halves[0].untyped_storage().data_ptr() != halves[1].untyped_storage().data_ptr()
    chosen = slice(*{"both": (0, 2), "first": (0, 1), "second": (1, 2)}[used])
    dys = dy.chunk(2, -1)[chosen]
    for half, chunk in zip(halves, chunks, strict=True):
        torch.testing.assert_close(half, chunk)
    got, want = (torch.autograd.grad(ys[chosen], leaves, dys) for ys in (halves, chunks))
    torch.testing.assert_close(got, want)
    assert len(calls) == (4 if used == "both" else 3)


@compiled_only
def test_halves_by_pytorch(calls):
    *leaves, _ = leaves_of(2, 5, 9, 20, 34)
    with mtlkit.use_backend("torch"):
        halves = pixel_linear_halves(*leaves)
    torch.testing.assert_close(halves, F.linear(*leaves).chunk(2, -1))
    assert not calls


@compiled_only
def test_the_same_bits_with_every_count_of_threads(isa, threads):
    *leaves, dy = leaves_of(1, 40, 30, 70, 90)
    found = []
    for count in (1, 2, 3, 8):
        threads(count)
        y = pixel_linear(*leaves)
        found.append((y, *torch.autograd.grad(y, leaves, dy)))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@compiled_only
@pytest.mark.parametrize("place", FENCES.values(), ids=FENCES)
def test_reads_and_writes_within_its_tensors(monkeypatch, place):
    *leaves, dy = leaves_of(*SIZES[2])
    want = torch.autograd.grad(F.linear(*leaves), leaves, dy)
    leaves = [place(t.detach()).requires_grad_() for t in leaves]
    dy = place(dy)
    with monkeypatch.context() as patch:
        fence(patch, place)
        got = torch.autograd.grad(pixel_linear(*leaves), leaves, dy)
    torch.testing.assert_close(got, want)


@compiled_only
def test_any_strides(calls):
    *leaves, dy = leaves_of(2, 5, 9, 20, 34)
    want = torch.autograd.grad(F.linear(*leaves), leaves, dy)
    x, weight, bias = leaves
    transposed = weight.detach().mT.contiguous().mT.requires_grad_()
    spaced = dy.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    torch.testing.assert_close(
        torch.autograd.grad(pixel_linear(x, transposed, bias), (x, transposed, bias), spaced), want
    )
    (dx,) = torch.autograd.grad(pixel_linear(*leaves).sum(), x)  # a gradient of stride 0
    torch.testing.assert_close(dx, weight.sum(0).expand_as(dx))
    (dx,) = torch.autograd.grad(pixel_linear(*leaves), x, torch.complex(dy, -dy).conj().imag)  # lazily negated
    torch.testing.assert_close(dx, want[0])
    assert len(calls) == 6


@compiled_only
@pytest.mark.parametrize("function", [pixel_linear, lambda *leaves: torch.cat(pixel_linear_halves(*leaves), -1)])
def test_second_derivatives(calls, function):
    *leaves, dy = leaves_of(2, 5, 9, 6, 8)

    def second(run: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(run(*leaves).square(), leaves, dy, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    torch.testing.assert_close(second(function), second(F.linear), rtol=1e-4, atol=1e-3)
    assert "linear_forward" in calls


@compiled_only
def test_the_same_bits_without_gradients(calls):
    """Reentrant checkpointing runs a layer without gradients, and later again with them."""
    *leaves, _ = leaves_of(2, 5, 9, 20, 34)
    for function in (pixel_linear, lambda *leaves: torch.cat(pixel_linear_halves(*leaves), -1)):
        with torch.no_grad():
            y = function(*leaves)
        assert torch.equal(y, function(*leaves))
    assert len(calls) == 6


@compiled_only
def test_a_graph_that_is_kept_gives_the_same_gradients(calls):
    *leaves, dy = leaves_of(2, 5, 9, 6, 8)
    y = pixel_linear(*leaves)
    first, second = (torch.autograd.grad(y, leaves, dy, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def dual(run: Callable[..., Tensor], *leaves: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return run(forward_ad.make_dual(leaves[0], torch.ones_like(leaves[0])), *leaves[1:])


def counted(run: Callable[..., Tensor], *leaves: Tensor) -> Tensor:
    with FlopCounterMode(display=False) as counter:
        y = run(*leaves)
    assert counter.get_total_flops() == 2 * y.numel() * leaves[0].shape[-1]
    return y


def by_torch(run: Callable[..., Tensor], *leaves: Tensor) -> Tensor:
    with mtlkit.use_backend("torch"):
        return run(*leaves)


def in_bfloat16(run: Callable[..., Tensor], *leaves: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return run(*leaves)


@compiled_only
@pytest.mark.parametrize(
    "call",
    [
        lambda run, *leaves: run(*(t.double() for t in leaves)),
        lambda run, x, *others: run(x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), *others),
        by_torch,
        lambda run, x, *others: torch.func.grad(lambda t: run(t, *others).sum())(x.detach()),
        lambda run, *leaves: torch.compile(run, backend="eager")(*leaves),
        dual,
        counted,
        in_bfloat16,
    ],
    ids=["double", "strided", "backend", "func", "compiled", "dual", "counted", "autocast"],
)
def test_everything_else_is_left_to_pytorch(calls, call):
    *leaves, _ = leaves_of(2, 5, 9, 6, 8)
    got = call(pixel_linear, *leaves)
    assert not calls
    torch.testing.assert_close(got, call(F.linear, *leaves))


@compiled_only
def test_shapes_that_do_not_fit_raise_the_error_of_pytorch(calls):
    x, weight, bias, _ = leaves_of(2, 5, 9, 6, 8)
    for arguments in ((x[..., :5].contiguous(), weight, bias), (x, weight, bias[:3])):
        with pytest.raises(RuntimeError, match=r"expected|size"):
            pixel_linear(*arguments)
    assert not calls
