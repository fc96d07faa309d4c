"""directional_scan by the Triton kernels of selective_scan, interpreted, against the reference in float64."""

import pytest
import torch

import mtlkit
from harness.directions import CASES, B, assert_sequences_apart, check, inputs_of, random_order, results
from mtlkit.kernels import tables
from mtlkit.ops import orders


@pytest.fixture(autouse=True)
def _backend():
    with mtlkit.use_backend("triton"):
        yield


@pytest.mark.parametrize("case", list(CASES))
def test_output_and_gradients(case):
    inputs, options = CASES[case]()
    check(inputs, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bit(dtype):
    check({name: t.to(dtype) for name, t in inputs_of(2, 9).items()}, dtype, order=random_order(2, 9))


@pytest.mark.parametrize("chunks", [1, 3])
def test_sequences_and_chunks(monkeypatch, chunks):
    """Sequences that end within a chunk, at its border and beyond it."""
    monkeypatch.setattr(tables, "split", lambda *_: chunks)
    seq_idx = torch.tensor([[0] * 5 + [7] + [3] * 10 + [1] * 20, [2] * 36])
    inputs = inputs_of(2, 36)
    check(inputs, order=orders.both(36), seq_idx=seq_idx)
    check(inputs, order=random_order(1, 36).expand(2, -1), seq_idx=torch.arange(36).expand(B, -1) // 12)


@pytest.mark.parametrize("chunks", [1, 2])
def test_nothing_passes_from_one_sequence_to_the_next(monkeypatch, chunks):
    monkeypatch.setattr(tables, "split", lambda *_: chunks)
    assert_sequences_apart(40, 24)


def test_layouts():
    """Outputs and gradients have the layouts of their tensors, and repeats are bitwise equal."""
    inputs, order = inputs_of(2, 9), random_order(2, 9)
    plain, again = results(inputs, torch.float32, order=order), results(inputs, torch.float32, order=order)
    other = results({name: t.contiguous() for name, t in inputs.items()}, torch.float32, order=order)
    assert plain["out"].stride() == inputs["u"].stride() == plain["du"].stride()
    assert other["out"].is_contiguous()
    for name, value in plain.items():
        assert torch.equal(value, again[name]), name
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-5, msg=name)
