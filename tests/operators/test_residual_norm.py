"""rms_norm and layer_norm of a sum, compared with their formulas in float64."""

import pytest
import torch
from torch import Tensor

from mtlkit.ops import layer_norm, rms_norm
from mtlkit.testing import assert_accurate

NORMS = {"rms": rms_norm, "layer": layer_norm}
EPS = 1e-3


def formula(kind: str, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> list[Tensor]:
    """The norm and the sum."""
    total = x if residual is None else x + residual
    centred = total if kind == "rms" else total - total.mean(-1, keepdim=True)
    y = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt() * weight
    return [y if bias is None else y + bias, total]


def inputs(shape=(3, 5, 20), dtype=torch.float64) -> dict[str, Tensor]:
    found = {
        "x": torch.randn(shape),
        "weight": torch.randn(20),
        "bias": torch.randn(20),
        "residual": torch.randn(shape),
    }
    return {name: t.to(dtype).requires_grad_() for name, t in found.items()}


@pytest.mark.parametrize("without", [(), ("bias",), ("residual",), ("bias", "residual")], ids=str)
@pytest.mark.parametrize("shape", [(20,), (7, 20), (2, 3, 5, 20), (0, 20)], ids=str)
@pytest.mark.parametrize("kind", NORMS)
def test_output_sum_and_gradients(kind, shape, without):
    given = inputs(shape)
    leaves = {name: t for name, t in given.items() if name not in without}
    got = NORMS[kind](**leaves, eps=EPS, prenorm=True)
    assert torch.equal(NORMS[kind](**leaves, eps=EPS), got[0])
    wanted = formula(kind, *({**given, **dict.fromkeys(without)}[name] for name in given))
    weights = [torch.randn_like(t) for t in wanted]
    for values, exact in (
        (got, wanted),
        *[[torch.autograd.grad(out, list(leaves.values()), weights) for out in (got, wanted)]],
    ):
        torch.testing.assert_close(list(values), list(exact), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", NORMS)
def test_sums_are_in_float32_at_least(kind, dtype):
    """The precision of the sum is that of the residual's dtype."""
    given = {name: t.detach() for name, t in inputs(dtype=dtype).items()}
    given["residual"] = torch.randn(3, 5, 20)
    y, total = NORMS[kind](**given, eps=EPS, prenorm=True)
    wanted, _ = formula(kind, *(t.double() for t in given.values()))
    assert (y.dtype, total.dtype) == (dtype, torch.float32)
    assert torch.equal(total, given["x"].float() + given["residual"])
    if dtype == torch.float32:
        assert_accurate("y", y, wanted)
    else:
        torch.testing.assert_close(y, wanted.to(dtype), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", NORMS)
def test_the_dtype_of_the_sum(kind):
    given = {name: t.detach() for name, t in inputs(dtype=torch.bfloat16).items()}
    residual = given.pop("residual")
    for in_fp32, wanted in ((False, torch.bfloat16), (True, torch.float32)):
        y, total = NORMS[kind](**given, prenorm=True, residual_in_fp32=in_fp32)
        assert (y.dtype, total.dtype) == (torch.bfloat16, wanted)
        assert torch.equal(total, given["x"].to(wanted))
    _, total = NORMS[kind](**given, residual=residual, prenorm=True, residual_in_fp32=True)
    assert total.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", NORMS)
def test_compiles_whole(kind):
    given = inputs(dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(NORMS[kind], backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**given, prenorm=True), NORMS[kind](**given, prenorm=True))


BAD = {
    "x: expected a tensor, got list": {"x": [1.0]},
    r"weight: expected shape \(C,\) = \(20,\), got \(19,\)": {"weight": torch.ones(19)},
    "bias: expected 1 dimensions, got 2": {"bias": torch.ones(1, 20)},
    r"residual: expected shape of x = \(3, 5, 20\), got \(3, 4, 20\)": {"residual": torch.ones(3, 4, 20)},
    "residual: expected float32, .* got torch.int64": {"residual": torch.ones(3, 5, 20, dtype=torch.int64)},
    "bias: expected device cpu, where x is, got meta": {"bias": torch.ones(20, device="meta")},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises((TypeError, ValueError), match=message):
        rms_norm(**inputs() | BAD[message])
