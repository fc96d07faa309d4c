"""Operators on tensors whose memory does not match their strides, or which have no memory."""

from functools import partial

import pytest
import torch
from torch import Tensor

import mtlkit
from mtlkit import _native
from mtlkit.testing import DirectionalScanShape, InteractionShape, SelectiveScanShape, SS2DShape, assert_accurate

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")


def scan(**tensors: Tensor) -> Tensor:
    return mtlkit.ops.selective_scan(**tensors, delta_softplus=True)


def level(x: Tensor, f: Tensor) -> Tensor:
    inputs = InteractionShape(2, 6, 5, 4, 8).inputs(torch.float64)
    out = mtlkit.ops.task_interaction(x, f, *inputs[2:])
    return torch.cat([out.seg.flatten(), out.clf.flatten()])


def normal(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64)


CASES = {
    "ss2d": (mtlkit.ops.ss2d, SS2DShape(2, 3, 4, 5, 4, 2).inputs(torch.float64)),
    "selective_scan": (scan, SelectiveScanShape(2, 4, 7, 3).inputs(torch.float64)),
    "directional_scan": (
        partial(mtlkit.ops.directional_scan, order=mtlkit.ops.orders.both(7)),
        DirectionalScanShape(2, 2, 4, 7, 3, 2, state=True).inputs(torch.float64),
    ),
    "depthwise_conv2d": (
        partial(mtlkit.ops.depthwise_conv2d, stride=2),
        {"x": normal(2, 3, 4, 5), "weight": normal(3, 1, 3, 3), "bias": normal(3)},
    ),
    "dwconv_silu": (
        mtlkit.ops.dwconv_silu,
        {"x": normal(2, 3, 4, 5), "weight": normal(3, 1, 3, 3), "bias": normal(3)},
    ),
    "causal_conv1d": (
        mtlkit.ops.causal_conv1d,
        {"x": normal(2, 3, 5), "weight": normal(3, 4), "bias": normal(3), "initial_states": normal(2, 3, 3)},
    ),
    "norm_gate": (
        mtlkit.ops.norm_gate,
        {"x": normal(5, 6), "weight": normal(6), "bias": normal(6), "z": normal(5, 6)},
    ),
    "task_interaction": (level, {"x": normal(2, 6, 5, 4), "f": normal(2, 8)}),
}
ARGUMENTS = [(op, name) for op, (_, tensors) in CASES.items() for name in tensors]


def negative(t: Tensor) -> Tensor:
    """The same values, as a view that negates its memory."""
    view = torch.complex(torch.zeros_like(t), -t).conj().imag
    assert view.is_neg()
    assert torch.equal(view, t)
    return view


@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_a_negative_view_has_its_own_sign(op, name):
    function, tensors = CASES[op]
    assert torch.equal(function(**tensors | {name: negative(tensors[name])}), function(**tensors))


@pytest.mark.parametrize("op", CASES)
def test_a_gradient_that_comes_as_a_negative_view(op):
    function, tensors = CASES[op]
    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    out = function(**leaves)
    dy = torch.randn_like(out)
    want = torch.autograd.grad(out, list(leaves.values()), dy, retain_graph=True)
    got = torch.autograd.grad(out, list(leaves.values()), negative(dy))
    for name, a, b in zip(leaves, got, want, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("op", CASES)
def test_gradients_through_complex_numbers(op):
    """Autograd uses a view for the complex conjugate."""
    function, tensors = CASES[op]

    def gradients(backend: str) -> list[Tensor]:
        leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        with mtlkit.use_backend(backend):
            out = function(**leaves)
        torch.complex(torch.ones_like(out), out).conj().abs().sum().backward()
        return [leaf.grad for leaf in leaves.values()]

    for name, a, b in zip(tensors, gradients("cpu"), gradients("torch"), strict=True):
        assert_accurate(name, a, b, gradient=True)


@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_a_tensor_that_stands_for_zeros(op, name):
    function, tensors = CASES[op]
    zeros = torch._efficientzerotensor(tensors[name].shape, dtype=torch.float64)
    assert torch.equal(function(**tensors | {name: zeros}), function(**tensors | {name: zeros.clone() + 0.0}))


@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_a_tensor_that_stands_for_zeros_has_its_gradient(op, name):
    function, tensors = CASES[op]

    def gradient(zeros: Tensor) -> Tensor:
        zeros.requires_grad_()
        return torch.autograd.grad(function(**tensors | {name: zeros}).square().sum(), zeros)[0]

    zeros = torch._efficientzerotensor(tensors[name].shape, dtype=torch.float64)
    assert torch.equal(gradient(zeros), gradient(torch.zeros_like(tensors[name])))


@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_a_nested_tensor_is_refused(op, name):
    function, tensors = CASES[op]
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)])
    with pytest.raises((TypeError, ValueError), match=f"{name}: expected a dense tensor, got a nested one"):
        function(**tensors | {name: nested})


def test_meta_tensors_go_through_the_shape_rule_alone():
    length = 1 << 40
    u, A = torch.empty(1, 4, length, device="meta"), torch.empty(4, 2, device="meta")
    rows = torch.empty(1, 2, length, device="meta")
    u.requires_grad_()
    out, last = mtlkit.ops.selective_scan(u, u, A, rows, rows, return_last_state=True)
    assert out.shape == u.shape
    assert last.shape == (1, 4, 2)
    out.sum().backward()
    assert u.grad.shape == u.shape


@pytest.mark.parametrize("op", [op for op in CASES if op != "task_interaction"])
def test_meta_tensors_have_the_shapes_and_layouts_of_others(op):
    function, tensors = CASES[op]
    want = function(**tensors)
    got = function(**{name: t.to("meta") for name, t in tensors.items()})
    assert (got.shape, got.dtype, got.stride()) == (want.shape, want.dtype, want.stride())


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0x7F800001, -1])
@pytest.mark.parametrize(("op", "name"), ARGUMENTS)
def test_a_nan_of_any_bits_is_not_lost(op, name, bits, isa):
    """PyTorch produces NaN with all bits set when it converts float16 singly or in a partial vector."""
    function, tensors = CASES[op]
    tensors = {n: t.float() for n, t in tensors.items()}
    spoilt = tensors[name].clone(memory_format=torch.contiguous_format)
    spoilt.view(torch.int32).view(-1)[-1] = bits
    assert function(**tensors | {name: spoilt}).isnan().any()


@pytest.mark.parametrize("training", [False, True])
def test_running_statistics_that_are_negative_views(training):
    """Training updates them, too."""
    level = InteractionShape(3, 6, 5, 4, 8).inputs(torch.float64)

    def run(view) -> tuple[Tensor, Tensor, Tensor]:
        tim = level.tim._replace(**{n: view(getattr(level.tim, n).clone()) for n in ("norm_mean", "norm_var")})
        out = mtlkit.ops.task_interaction(level.x, level.f, tim, level.upa, training=training)
        return out.clf, tim.norm_mean, tim.norm_var

    for got, want in zip(
        run(lambda t: torch._neg_view(-t)), run(lambda t: t), strict=True
    ):  # contiguous, so not copied
        assert torch.equal(got, want)
