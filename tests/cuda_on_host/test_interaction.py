"""The CUDA kernels of task interaction against the reference in float64."""

import pytest
import torch
from torch import Tensor

import mtlkit
from harness.gating import VECTOR_CASES, VectorCall, VectorCase, assert_same
from harness.layouts import far_apart
from mtlkit import _native
from mtlkit.operators.interaction import reduce, scale
from mtlkit.operators.interaction.reduce import reduce_reference, reduce_torch
from mtlkit.testing import InteractionShape, assert_accurate

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# (B, C, H, W, P): partly filled rows, tiles and blocks, several blocks of rows, lines, single pixels
SHAPES = (
    (2, 6, 5, 4, 3),
    (1, 96, 9, 8, 48),
    (2, 70, 7, 5, 75),
    (1, 20, 3, 31, 200),
    (3, 5, 1, 1, 2),
    (2, 33, 1, 70, 100),
)
FORMS = ((False, True), (True, False))  # attention, energy
CASES = [
    *((shape, torch.float32, *form) for shape in SHAPES for form in FORMS),
    *((SHAPES[0], dtype, attention, True) for dtype in DTYPES[1:] for attention in (False, True)),
    *((SHAPES[1], dtype, False, False) for dtype in DTYPES[1:]),
]
NAMES = ("x", "weight", "bias", "attn")


def make(shape: tuple[int, ...], dtype: torch.dtype, attention: bool) -> tuple[reduce.Inputs, tuple[Tensor, ...]]:
    """The inputs of reduce, and the gradients of its sums."""
    B, C, H, W, P = shape
    x = (torch.randn(B, C, H, W) + torch.randn(B, C, 1, 1)).to(dtype)
    attn = (torch.randn(C) * C**-0.5).to(dtype) if attention else None
    inputs = reduce.Inputs(x, (torch.randn(P, C) * C**-0.5).to(dtype), (0.3 * torch.randn(P)).to(dtype), attn)
    return inputs, (torch.randn(B, C), torch.randn(B, C), torch.randn(B), torch.randn(B, P))


def run(inputs: reduce.Inputs, grads, energy: bool, dy: Tensor, factors: Tensor) -> dict[str, Tensor]:
    """Sums and gradients by the kernels, followed by a scaling pass."""
    options, backend = reduce.Options(energy, torch.float32), reduce.OPERATOR.backends["cuda"]
    *sums, softmax, signs = backend.forward(inputs, options, True)
    kept = sums[0], sums[3], softmax, signs
    dmean, dvariance, denergy, dpooled = grads
    grads = dmean, dvariance, denergy if energy else None, dpooled
    gradients = backend.backward_with(inputs, options, kept, grads, dy, factors, (True,) * 4)
    scaling = scale.OPERATOR.backends["cuda"]
    (y,) = scaling.forward(scale.Inputs(inputs.x, factors), (), False)
    found = dict(zip(("mean", "variance", "energy", "pooled"), sums, strict=True))
    found |= {f"d{name}": g for name, g in zip(NAMES, gradients, strict=True)}
    return found | {"y": y, "dfactors": scaling.gradient_of_factors(dy, inputs.x, factors)}


def expected(inputs, grads, energy, dy, factors, dtype) -> dict[str, Tensor]:
    exact = dtype == torch.float64
    compute = torch.float64 if exact else torch.float32
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in inputs]
    factors = factors.to(compute).requires_grad_()
    sums = (reduce_reference if exact else reduce_torch)(*leaves, energy, compute)
    y = (leaves[0] * factors[:, :, None, None]).to(dtype)
    loss = (y * dy.to(dtype)).sum()
    loss = loss + sum((s * g.to(s.dtype)).sum() for s, g in zip(sums, grads, strict=True) if s is not None)
    loss.backward()
    found = {name: s.detach() for name, s in sums._asdict().items() if s is not None}
    found |= {f"d{name}": t.grad for name, t in zip(NAMES, leaves, strict=True) if t is not None}
    return found | {"y": y.detach(), "dfactors": factors.grad}


def check(inputs: reduce.Inputs, grads, energy: bool, dy: Tensor | None = None) -> dict[str, Tensor]:
    x = inputs.x
    factors = torch.randn(x.shape[:2])
    dy = torch.randn(x.shape).to(x.dtype) if dy is None else dy
    exact = expected(inputs, grads, energy, dy, factors, torch.float64)
    rough = exact if x.dtype == torch.float32 else expected(inputs, grads, energy, dy, factors, x.dtype)
    got = run(inputs, grads, energy, dy, factors)
    for name, value in exact.items():
        gradient = name.startswith("d")
        assert got[name].dtype == (x.dtype if name in ("y", "dx") else torch.float32)
        if x.dtype == torch.float32:
            assert_accurate(name, got[name], value, gradient=gradient)
        else:  # sums and gradients of parameters are float32 here, 16-bit in plain PyTorch
            assert_accurate(name, got[name].to(x.dtype), value, rough[name].to(x.dtype), gradient=gradient)
    return got


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("shape", "dtype", "attention", "energy"), CASES, ids=str)
def test_passes(on_host, shape, dtype, attention, energy, channels_last):
    inputs, grads = make(shape, dtype, attention)
    if channels_last:
        inputs = inputs._replace(x=inputs.x.to(memory_format=torch.channels_last))
    check(inputs, grads, energy)


@pytest.mark.parametrize("multiprocessors", [1, 3, 132])
def test_shares_and_chunks_decide_the_speed_alone(on_host, kernels, multiprocessors):
    on_host(multiprocessors)
    shape = (2, 20, 9, 13, 30)
    inputs, grads = make(shape, torch.float32, False)
    plan = kernels.cuda_interaction_plan(sizes=shape, multiprocessors=multiprocessors)
    assert (plan.tiles, plan.row_blocks, plan.sign_words, plan.sign_bytes) == (2, 1, 8, 1)
    assert (plan.shares, plan.chunks) == {1: (2, 2), 3: (4, 2), 132: (8, 2)}[multiprocessors]
    check(inputs, grads, True)


def test_another_layout_of_the_gradient(on_host):
    inputs, grads = make((2, 9, 6, 8, 4), torch.float32, False)
    check(inputs, grads, True, torch.randn(2, 6, 8, 9).permute(0, 3, 1, 2))
    wide = torch.randn(2, 18, 6, 16)
    for x in (wide[:, ::2, :, :8], wide[:, :9, :, ::2], wide[:1, :9, :, :8].expand(2, -1, -1, -1)):
        check(inputs._replace(x=x), grads, False)


@pytest.mark.parametrize("attention", [False, True])
def test_repeats_bit_by_bit_in_any_order(on_host, kernels, attention):
    on_host(3)
    inputs, grads = make((2, 40, 9, 13, 30), torch.float32, attention)
    dy, factors = torch.randn_like(inputs.x), torch.randn(2, 40)
    results = []
    for seed in range(3):
        kernels.seed(seed)
        results.append(run(inputs, grads, True, dy, factors))
    for other in results[1:]:
        assert all(torch.equal(t, other[name]) for name, t in results[0].items() if t is not None)


def test_variance_beside_a_large_mean(on_host):
    x = (1e4 + 1e-2 * torch.randn(2, 3, 20, 30, dtype=torch.float64)).float()
    backend = reduce.OPERATOR.backends["cuda"]
    _, variance, *_ = backend.forward(reduce.Inputs(x, None, None, None), reduce.Options(False, torch.float32), False)
    exact = x.double().var((2, 3), correction=0)
    assert ((variance - exact) / exact).abs().max() < 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 33])
def test_what_is_not_finite_propagates(on_host, value, place):
    inputs, _ = make((2, 6, 9, 8, 4), torch.float32, True)
    inputs.x[0, 2].view(-1)[place] = value
    got = reduce.OPERATOR.backends["cuda"].forward(inputs, reduce.Options(True, torch.float32), False)
    for found, exact in zip(got, reduce_reference(*inputs, True, torch.float32), strict=True):
        torch.testing.assert_close(found, exact, equal_nan=True)


def test_maps_beyond_32_bit_offsets(on_host):
    inputs, grads = make((2, 5, 3, 4, 3), torch.float16, False)
    dy, factors = torch.randn(inputs.x.shape).half(), torch.randn(2, 5)
    near = run(inputs, grads, True, dy, factors)
    far = run(inputs._replace(x=far_apart(inputs.x)), grads, True, far_apart(dy), factors)
    assert all(torch.equal(t, far[name]) for name, t in near.items() if t is not None)


@pytest.mark.parametrize("case", VECTOR_CASES, ids=str)
def test_gating(on_host, case):
    call = VectorCall(case)
    assert_same(call.run("cuda", torch.float32), call.run("torch", torch.float64))


@pytest.mark.parametrize("frozen", [("mean", "f"), ("context_weight", "norm_weight", "seg_proj"), ("fc1_weight",)])
def test_what_needs_no_gradient(on_host, frozen):
    call = VectorCall(VectorCase(3, 20, 18, "alignment"))
    whole, part = (call.run("cuda", torch.float32, names) for names in ((), frozen))
    assert not any(f"d{name}" in part for name in frozen)
    assert all(torch.equal(part[name], whole[name]) for name in part)


def test_the_parts_ask_for_these_kernels(on_host, kernels):
    level = InteractionShape(2, 8, 5, 6, 10).inputs()
    x, enhanced, f = level.x, 1.5 * level.x, level.f
    calls = {
        "tim_pool": lambda: mtlkit.ops.tim_pool(x, level.tim.proj_weight, level.tim.proj_bias),
        "tim_modulate": lambda: mtlkit.ops.tim_modulate(x, torch.rand(2, 8), torch.rand(2, 8)),
        "upa_stats": lambda: mtlkit.ops.upa_stats(x, enhanced, f, 2 * f),
        "tim": lambda: mtlkit.ops.tim(x, f, level.tim),
        "upa": lambda: mtlkit.ops.upa(x, enhanced, f, 2 * f, level.upa),
        "task_interaction": lambda: mtlkit.ops.task_interaction(x, f, level.tim, level.upa),
    }
    for name, call in calls.items():
        before = kernels.launches()
        call()
        assert kernels.launches() > before, name


def test_float64_is_refused(on_host):
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="it computes in float32, but a tensor is float64"):
        mtlkit.ops.tim_modulate(x, torch.rand(2, 4), torch.rand(2, 4))
    assert _native.C.cuda
