"""The computations of task interaction between its passes, by the CPU kernel."""

import pytest
import torch

import mtlkit
from harness.gating import VECTOR_CASES, VectorCall, VectorCase, assert_same
from mtlkit import _native
from mtlkit.operators.interaction import gating
from mtlkit.testing import InteractionShape, relative_error

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", VECTOR_CASES, ids=str)
def test_accurate(case, dtype):
    call = VectorCall(case)
    assert_same(call.run("cpu", dtype), call.run("torch", torch.float64))


@pytest.mark.parametrize("case", VECTOR_CASES[2:6], ids=str)
def test_every_instruction_set(isa, case):
    call = VectorCall(case)
    assert_same(call.run("cpu", torch.float32), call.run("torch", torch.float64))


def test_thread_counts_agree_bit_by_bit(threads):
    found = []
    for count in (1, 2, 3, 16):
        threads(count)
        found.append(VectorCall(VectorCase(5, 48, 33, "alignment", training=True)).run("cpu", torch.float32))
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in found[0])


@pytest.mark.parametrize("signals", ["variance", "alignment"])
@pytest.mark.parametrize("frozen", [("mean", "f"), ("context_weight", "norm_weight", "seg_proj"), ("fc1_weight",)])
def test_what_needs_no_gradient(frozen, signals):
    call = VectorCall(VectorCase(3, 20, 18, signals))
    whole, part = (call.run("cpu", torch.float32, names) for names in ((), frozen))
    assert not any(f"d{name}" in part for name in frozen)
    assert all(torch.equal(part[name], whole[name]) for name in part)


def test_writes_every_element(poisoned):
    for case in VECTOR_CASES:
        assert not any(value.isnan().any() for value in VectorCall(case).run("cpu", torch.float32).values())


def test_short_queries_have_the_gradient_of_pytorch():
    call = VectorCall(VectorCase(3, 20, 18, "alignment"))
    call.upa = call.upa._replace(seg_proj=call.upa.seg_proj * 1e-8)
    assert_same(call.run("cpu", torch.float64), call.run("torch", torch.float64))


def test_gradients_of_similar_images_keep_their_digits(isa):
    """Divided by their mean, the signals of a batch are all about 1, and the sums behind their gradients cancel."""
    inputs = InteractionShape(8, 384, 14, 14).inputs()
    generator = torch.Generator().manual_seed(0)
    cotangents = [t + torch.randn(t.shape, generator=generator) for t in inputs[:2]]

    def gradient(backend, dtype):
        x, f, *cast = (t.to(dtype) for t in (*inputs[:2], *cotangents))
        tim, upa = (type(p)(*(None if t is None else t.to(dtype) for t in p)) for p in inputs[2:])
        weight = tim.norm_weight.requires_grad_()
        with mtlkit.use_backend(backend):
            out = mtlkit.ops.task_interaction(x, f, tim, upa)
        return torch.autograd.grad([out.seg, out.clf], weight, cast)[0]

    assert relative_error(gradient("cpu", torch.float32), gradient("torch", torch.float64)) < 3e-6


def test_the_kernels_run(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("PyTorch was asked")

    monkeypatch.setattr(gating, "gating_torch", refuse)
    inputs = InteractionShape(2, 8, 3, 3, 8).inputs(requires_grad=True)
    with mtlkit.use_backend("cpu"):
        mtlkit.ops.task_interaction(*inputs).seg.sum().backward()
    with mtlkit.use_backend("torch"), pytest.raises(AssertionError, match="PyTorch was asked"):
        mtlkit.ops.task_interaction(*inputs)


def test_training_with_one_image_raises_as_pytorch_does():
    inputs = InteractionShape(1, 8, 3, 3, 8).inputs()
    with mtlkit.use_backend("cpu"), pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        mtlkit.ops.task_interaction(*inputs, training=True)
