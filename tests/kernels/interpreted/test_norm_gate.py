"""The Triton kernels of norm_gate, interpreted, against the reference in float64."""

import pytest
import torch

from mtlkit.kernels import norm_gate
from mtlkit.operators.norm_gate import norm_gate_reference, norm_gate_torch
from mtlkit.testing import assert_accurate

EPS = 1e-5
NAMES = ("x", "weight", "bias", "z")


def arguments(shape: tuple, dtype: torch.dtype, without: tuple = ()) -> list:
    generator = torch.Generator().manual_seed(1)
    sizes = {"x": shape, "weight": shape[-1:], "bias": shape[-1:], "z": shape}
    tensors = {name: torch.randn(*size, generator=generator).to(dtype) for name, size in sizes.items()}
    return [None if name in without else t for name, t in tensors.items()]


def composed(function, inputs: list, dout: torch.Tensor) -> tuple:
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = function(*leaves, EPS)
    y.backward(dout.to(y.dtype))
    return y.detach(), *(None if t is None else t.grad for t in leaves)


def check(inputs: list, dout: torch.Tensor) -> tuple:
    dtype = inputs[0].dtype
    got = norm_gate.forward(*inputs, EPS), *norm_gate.backward(dout.to(dtype), *inputs, EPS)
    doubles = [None if t is None else t.double() for t in inputs]
    wanted, plain = composed(norm_gate_reference, doubles, dout.to(dtype)), composed(norm_gate_torch, inputs, dout)
    for name, *results in zip(("y", *NAMES), got, wanted, plain, strict=True):
        if results[1] is None:
            assert results[0] is None
        else:
            assert results[0].dtype == dtype
            assert_accurate(name, *results, gradient=name != "y")
    return got


@pytest.mark.parametrize("without", [(), ("z",), ("weight", "bias"), NAMES[1:]], ids=str)
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 4, 33), (3, 1)], ids=str)
def test_output_and_gradients(shape, without):
    check(arguments(shape, torch.float32, without), torch.randn(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit(dtype):
    check(arguments((9, 40), dtype), torch.randn(9, 40))


def test_runs_of_rows(monkeypatch):
    """Programs with several steps, the last one shorter; repeats are bitwise equal."""
    monkeypatch.setattr(norm_gate, "processors", lambda _: 1)
    inputs, dout = arguments((2, 53, 24), torch.float32), torch.randn(2, 53, 24)
    first, second = check(inputs, dout), check(inputs, dout)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_layouts():
    inputs, dout = arguments((4, 6, 8), torch.float32), torch.randn(8, 6, 4).permute(2, 1, 0)
    wide = torch.randn(4, 6, 20)
    wide[..., 3:11] = inputs[0]
    inputs[0] = wide[..., 3:11]
    inputs[3] = inputs[3].permute(2, 1, 0).contiguous().permute(2, 1, 0)
    check(inputs, dout)


def test_large_mean():
    """The variance is computed around the mean, without cancellation."""
    inputs = arguments((4, 64), torch.float32)
    inputs[0] = inputs[0] + 1000
    wanted = norm_gate_reference(*(t.double() for t in inputs), EPS)
    assert_accurate("y", norm_gate.forward(*inputs, EPS), wanted)


def test_empty_float64_and_too_many_channels():
    inputs = arguments((0, 8), torch.float32)
    assert norm_gate.forward(*inputs, EPS).shape == (0, 8)
    assert all(not g.any() for g in norm_gate.backward(inputs[0], *inputs, EPS))
    with pytest.raises(TypeError, match=r"norm_gate: the triton backend expects .*float64"):
        norm_gate.forward(*arguments((2, 8), torch.float64), EPS)
    with pytest.raises(ValueError, match="norm_gate: the triton backend takes at most 16384 channels, got 16385"):
        norm_gate.forward(torch.zeros(1, 16385), None, None, None, EPS)
