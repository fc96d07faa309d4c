"""directional_scan by the Triton kernels of selective_scan, interpreted, against the reference in float64."""

import pytest
import torch
from torch import Tensor

import mtlkit
from mtlkit.kernels import selective_scan
from mtlkit.ops import directional_scan, orders
from mtlkit.testing import assert_accurate

B, D, N, R = 2, 3, 2, 1
INF = float("inf")


def inputs_of(K: int, tokens: int, *, own: bool = False, initial: bool = True, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    found = {
        "u": normal(B, K, tokens, D).transpose(-1, -2) if own else normal(B, tokens, D).transpose(-1, -2),
        "x_dbl": normal(B, tokens, K, R + 2 * N).permute(0, 2, 3, 1),
        "dt_weight": normal(K, D, R),
        "dt_bias": normal(K, D) - 1,
        "A_logs": normal(K * D, N) / 2,
        "Ds": normal(K * D),
    }
    return found | ({"initial_state": normal(B, K, D, N)} if initial else {})


def results(inputs: dict[str, Tensor], dtype: torch.dtype, **options) -> dict[str, Tensor]:
    """Outputs and every gradient by name."""
    leaves = {name: t.to(dtype).requires_grad_() for name, t in inputs.items()}
    outputs = directional_scan(**leaves, return_last_state=True, **options)
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(t.shape, generator=generator).to(t) for t in outputs]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), weights)
    named = dict(zip(("out", "last"), outputs, strict=True)) | {
        f"d{name}": g for name, g in zip(leaves, gradients, strict=True)
    }
    return {name: t.detach() for name, t in named.items()}


def check(inputs: dict[str, Tensor], **options) -> dict[str, Tensor]:
    with mtlkit.use_backend("reference"):
        wanted = results(inputs, torch.float64, **options)
    with mtlkit.use_backend("triton"):
        got = results(inputs, torch.float32, **options)
    for name, value in got.items():
        assert_accurate(name, value, wanted[name], wanted[name], gradient=name not in ("out", "last"))
    return got


def random_order(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(shape, generator=generator).argsort(-1)


CASES = {
    "rows and columns": (orders.cross(3, 3), {"initial": False}, {}),
    "permutations": (random_order(2, 17), {}, {"merge": False}),
    "own inputs": (random_order(2, 9), {"own": True}, {}),
    "own inputs, apart": (random_order(2, 9), {"own": True}, {"merge": False}),
    "an order for each sample": (random_order(B, 2, 9), {}, {}),
    "a part of the tokens": (random_order(3, 19)[:, :7], {}, {}),
    "a part of the tokens, apart": (random_order(1, 19)[:, :5], {}, {"merge": False}),
    "as they come": (orders.forward(10), {}, {}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_output_and_gradients(case):
    order, given, options = CASES[case]
    tokens = {"permutations": 17}.get(case, 19 if "part" in case else 10 if case == "as they come" else 9)
    directions = order.directions if isinstance(order, orders.ScanOrder) else order.shape[-2]
    check(inputs_of(directions, tokens, **given), order=order, **options)


@pytest.mark.parametrize("chunks", [1, 3])
def test_sequences_and_chunks(monkeypatch, chunks):
    """Sequences that end within a chunk, at its border and across it, one with A = 0 and infinite steps."""
    monkeypatch.setattr(selective_scan, "split", lambda *_: chunks)
    seq_idx = torch.tensor([[0] * 5 + [7] + [3] * 10 + [1] * 20, [2] * 36])
    inputs = inputs_of(2, 36)
    check(inputs, order=orders.both(36), seq_idx=seq_idx)
    check(inputs, order=random_order(1, 36).expand(2, -1), seq_idx=torch.arange(36).expand(B, -1) // 12)


@pytest.mark.parametrize("chunks", [1, 2])
def test_nothing_passes_from_one_sequence_to_the_next(monkeypatch, chunks):
    """Nor its gradient back, however the states of the first grow and whether they decay at all."""
    monkeypatch.setattr(selective_scan, "split", lambda *_: chunks)
    tokens, first = 40, 24
    seq_idx = (torch.arange(tokens) >= first).int().expand(B, -1)
    whole = inputs_of(1, tokens, initial=False)
    whole["A_logs"] = whole["A_logs"].index_fill(0, torch.tensor([0]), -INF)  # A = 0
    spoilt = {name: t.clone() for name, t in whole.items()}
    spoilt["u"][..., 3] = INF
    spoilt["x_dbl"][:, :, 0, 5] = INF

    def gradients(inputs: dict[str, Tensor], part: slice) -> tuple[Tensor, Tensor, Tensor]:
        leaf = inputs["u"].clone().requires_grad_()
        y, last = directional_scan(
            **(inputs | {"u": leaf}), order=orders.forward(tokens), seq_idx=seq_idx, return_last_state=True
        )
        return y.detach()[..., part], last.detach(), torch.autograd.grad(y[..., part].sum(), leaf)[0][..., part]

    with mtlkit.use_backend("triton"):
        for got, wanted in zip(*(gradients(one, slice(first, None)) for one in (spoilt, whole)), strict=True):
            assert wanted.isfinite().all()
            assert torch.equal(got, wanted)


def test_layouts():
    """Outputs and gradients lie as their tensors do."""
    inputs, order = inputs_of(2, 9), random_order(2, 9)
    with mtlkit.use_backend("triton"):
        plain, again = results(inputs, torch.float32, order=order), results(inputs, torch.float32, order=order)
        rows = {name: t.contiguous() for name, t in inputs.items()}
        other = results(rows, torch.float32, order=order)
    assert plain["out"].stride() == inputs["u"].stride() == plain["du"].stride()
    assert other["out"].is_contiguous()
    for name, value in plain.items():
        assert torch.equal(value, again[name]), name
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit(dtype):
    inputs, options = {name: t.to(dtype) for name, t in inputs_of(2, 9).items()}, {"order": random_order(2, 9)}
    with mtlkit.use_backend("reference"):
        wanted = results(inputs, torch.float64, **options)
    with mtlkit.use_backend("torch"):
        plain = results(inputs, dtype, **options)
    with mtlkit.use_backend("triton"):
        got = results(inputs, dtype, **options)
    for name, value in got.items():
        assert value.dtype == (torch.float32 if name == "last" else dtype), name
        assert_accurate(name, value, wanted[name], plain[name], gradient=name not in ("out", "last"))
