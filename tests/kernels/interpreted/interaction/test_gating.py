"""The computations of task interaction between its passes, by the interpreted Triton kernels."""

import pytest
import torch

import mtlkit
from harness.gating import VECTOR_CASES, VectorCall, VectorCase, assert_same
from mtlkit.operators.interaction import gating
from mtlkit.testing import InteractionShape


@pytest.mark.parametrize("case", VECTOR_CASES, ids=str)
def test_accurate(case):
    call = VectorCall(case)
    assert_same(call.run("triton", torch.float32), call.run("torch", torch.float64))


@pytest.mark.parametrize("frozen", [("mean", "f"), ("context_weight", "norm_weight", "seg_proj"), ("fc1_weight",)])
def test_what_needs_no_gradient(frozen):
    call = VectorCall(VectorCase(3, 20, 18, "alignment"))
    whole, part = (call.run("triton", torch.float32, names) for names in ((), frozen))
    assert not any(f"d{name}" in part for name in frozen)
    assert all(torch.equal(part[name], whole[name]) for name in part)


def test_repeats_bit_by_bit():
    first, second = (VectorCall(VECTOR_CASES[3]).run("triton", torch.float32) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_more_images_than_a_program_holds_go_to_pytorch(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("PyTorch was asked")

    monkeypatch.setattr(gating, "gating_torch", refuse)
    most = gating.BACKENDS["triton"].MOST_IMAGES
    with mtlkit.use_backend("triton"):
        mtlkit.ops.task_interaction(*InteractionShape(most, 2, 2, 2, 3).inputs())
        with pytest.raises(AssertionError, match="PyTorch was asked"):
            mtlkit.ops.task_interaction(*InteractionShape(most + 1, 2, 2, 2, 3).inputs())
