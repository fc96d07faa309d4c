"""The Triton kernels of dwconv_silu, interpreted, against the reference in float64."""

import pytest
import torch

from mtlkit.kernels import dwconv_silu
from mtlkit.operators.dwconv_silu import dwconv_silu_reference, dwconv_silu_torch
from mtlkit.testing import assert_accurate

SHAPES = [(2, 5, 4, 7), (1, 33, 1, 6), (1, 1, 1, 1), (1, 3, 9, 2)]


def arguments(shape: tuple, dtype: torch.dtype = torch.float32, bias: bool = True) -> list:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last)
    weight, vector = torch.randn(shape[1], 1, 3, 3, generator=generator), torch.randn(shape[1], generator=generator)
    return [x.to(dtype), weight.to(dtype), vector.to(dtype) if bias else None]


def composed(function, inputs: list, dy: torch.Tensor) -> tuple:
    leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = function(*leaves)
    y.backward(dy.to(y.dtype))
    return y.detach(), *(None if t is None else t.grad for t in leaves)


def check(inputs: list, dy: torch.Tensor) -> tuple:
    dtype = inputs[0].dtype
    got = dwconv_silu.forward(*inputs), *dwconv_silu.backward(dy.to(dtype), *inputs)
    doubles = [None if t is None else t.double() for t in inputs]
    wanted, plain = composed(dwconv_silu_reference, doubles, dy.to(dtype)), composed(dwconv_silu_torch, inputs, dy)
    for name, *results in zip(("y", "x", "weight", "bias"), got, wanted, plain, strict=True):
        if results[1] is None:
            assert results[0] is None
        else:
            assert results[0].dtype == dtype
            assert_accurate(name, *results, gradient=name != "y")
    return got


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients(shape, bias):
    check(arguments(shape, bias=bias), torch.randn(shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit(dtype):
    check(arguments(SHAPES[0], dtype), torch.randn(SHAPES[0]))


def test_layouts():
    """Bitwise equal for every layout; outputs are dense, with the channels where x has them."""
    inputs, dy = arguments(SHAPES[0]), torch.randn(SHAPES[0])
    plain = check(inputs, dy)
    assert plain[0].is_contiguous(memory_format=torch.channels_last)
    spread = torch.zeros(2, 5, 4, 14)
    spread[..., ::2] = inputs[0]
    for x in (inputs[0].contiguous(), spread[..., ::2]):
        got = check([x, *inputs[1:]], dy.transpose(2, 3).contiguous().transpose(2, 3))
        assert got[0].is_contiguous()
        assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))


def test_runs_of_pixels(monkeypatch):
    """Programs with several steps, the last one shorter; repeats are bitwise equal."""
    monkeypatch.setattr(dwconv_silu, "processors", lambda _: 1)
    monkeypatch.setattr(dwconv_silu, "pixel_tiles", lambda _: (8, 4, 1))
    inputs, dy = arguments((2, 5, 3, 4)), torch.randn(2, 5, 3, 4)
    first, second = check(inputs, dy), check(inputs, dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_empty_batch_and_float64():
    inputs = arguments((0, 3, 4, 4))
    assert dwconv_silu.forward(*inputs).shape == (0, 3, 4, 4)
    assert all(not g.any() for g in dwconv_silu.backward(inputs[0], *inputs))
    with pytest.raises(TypeError, match=r"dwconv_silu: the triton backend expects .*float64"):
        dwconv_silu.forward(*arguments(SHAPES[0], torch.float64))
