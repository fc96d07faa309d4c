"""No call crashes the interpreter: random calls give correct results, damaged ones a clear error."""

import random
import re
import time

import pytest
import torch

import mtlkit
from harness.calls import visits
from harness.fuzz_judge import Tally, fuzz
from mtlkit import _native, ops
from mtlkit.testing import DirectionalScanShape, SelectiveScanShape, SS2DShape, assert_accurate

OPS = ["ss2d", "selective_scan", "directional_scan", "dwconv_silu", "norm_gate", "tim_pool", "tim_modulate"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def restrided(t: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """The same values with another order, spacing and offset in memory."""
    order = rng.sample(range(t.dim()), t.dim())
    spacing = [rng.choice([1, 1, 2, 3]) for _ in order]
    storage = torch.zeros([t.shape[d] * step + 1 for d, step in zip(order, spacing, strict=True)], dtype=t.dtype)
    view = storage
    for d, step in enumerate(spacing):
        view = view.narrow(d, rng.randint(0, 1), view.shape[d] - 1)[(slice(None),) * d + (slice(None, None, step),)]
    back = [order.index(d) for d in range(t.dim())]
    return view.permute(back).copy_(t)


def arguments(op: str, rng: random.Random, dtype: torch.dtype) -> dict:
    size = rng.choice([1, 2, 3, 5, 8, 16, 17, 33])
    H, W, N, R = rng.randint(1, 9), rng.randint(1, 9), rng.choice([1, 2, 3, 4, 7, 16, 20]), rng.randint(1, 5)
    B = rng.randint(0, 3)
    if op == "ss2d":
        return SS2DShape(B, size, H, W, N, R).inputs(dtype, seed=rng.randint(0, 99))
    if op == "selective_scan":
        groups = rng.choice([0, 1, size])
        inputs = SelectiveScanShape(B, size, H * W, N, G=groups).inputs(dtype, seed=rng.randint(0, 99))
        left_out = rng.sample(["D", "z", "delta_bias"], rng.randint(0, 3))
        return {name: t for name, t in inputs.items() if name not in left_out} | {"delta_softplus": True}
    if op == "directional_scan":
        shape = DirectionalScanShape(B, rng.randint(1, 5), size, H * W, N, R, *(rng.random() < 0.5 for _ in range(2)))
        order = visits(rng.choice(["random", "half", "own"]), shape.K, shape.L, B)
        return shape.inputs(dtype, seed=rng.randint(0, 99)) | {"order": order, "merge": rng.random() < 0.5}
    if op == "tim_pool":
        inputs = {"x": torch.randn(B, size, H, W), "weight": torch.randn(R, size), "bias": torch.rand(R)}
    elif op == "tim_modulate":
        inputs = {"x": torch.randn(B, size, H, W), "gate": torch.rand(B, size), "gain": torch.rand(B, size)}
    elif op == "dwconv_silu":
        inputs = {"x": torch.randn(B, size, H, W), "weight": torch.randn(size, 1, 3, 3), "bias": torch.randn(size)}
    else:
        size = max(size, 8)  # with two channels, a LayerNorm leaves only signs; the gradient is rounding error
        rows = (B, H, W, size)
        inputs = {
            "x": torch.randn(rows),
            "weight": torch.randn(size),
            "bias": torch.randn(size),
            "z": torch.randn(rows),
        }
    optional = [name for name in inputs if name in ("bias", "z") and op != "tim_pool"]
    left_out = rng.sample(optional, min(len(optional), rng.randint(0, 1)))
    return {name: t.to(dtype) for name, t in inputs.items() if name not in left_out}


def call(op: str, inputs: dict) -> list[torch.Tensor]:
    """Output and gradients."""
    leaves = {name: t.detach().requires_grad_() if isinstance(t, torch.Tensor) else t for name, t in inputs.items()}
    out = getattr(ops, op)(**leaves)
    tensors = [t for t in leaves.values() if isinstance(t, torch.Tensor)]
    return [out.detach(), *torch.autograd.grad(out.double().square().sum(), tensors)]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("seed", range(40))
def test_random_calls(op, seed):
    rng = random.Random(f"{op} {seed}")
    torch.manual_seed(seed)
    dtype = rng.choice(DTYPES)
    inputs = arguments(op, rng, dtype)
    strided = {n: restrided(t, rng) if isinstance(t, torch.Tensor) else t for n, t in inputs.items()}
    with mtlkit.use_backend("reference"):
        exact = call(op, {n: t.double() if isinstance(t, torch.Tensor) else t for n, t in inputs.items()})
    with mtlkit.use_backend("torch"):
        plain = call(op, inputs)
    for index, got in enumerate(call(op, strided)):
        assert_accurate(f"{op} {index}", got, exact[index], plain[index], gradient=index > 0)


@pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")
def test_a_slice_of_the_long_run(poisoned):
    """As many of the first calls as 15 seconds allow, at most 500: see tests/fuzz.py."""
    start, tally = time.monotonic(), Tally()
    for _ in fuzz(range(500), ("cpu", "torch"), tally):
        if time.monotonic() - start > 15:
            break
    print(tally)
    assert not tally.failed
    assert tally.backends.total() > 0


def damaged(t: torch.Tensor, rng: random.Random) -> object:
    """A tensor that does not fit, or something that is not a tensor."""
    return rng.choice(
        [
            lambda: t.to(torch.int32),
            lambda: t.to(torch.complex64),
            lambda: t[None],
            lambda: t.flatten()[:-1] if t.numel() else t[None],
            lambda: torch.cat([t, t[:1]]) if t.shape[0] else t[None],
            lambda: t.to("meta"),
            lambda: t.tolist(),
            lambda: torch.zeros([s + 1 for s in t.shape], dtype=t.dtype),
        ]
    )()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("seed", range(60))
def test_damaged_calls(op, seed):
    rng = random.Random(f"{op} damaged {seed}")
    inputs = arguments(op, rng, rng.choice([torch.float32, torch.float64]))
    name = rng.choice([n for n, t in inputs.items() if isinstance(t, torch.Tensor)])
    inputs[name] = damaged(inputs[name], rng)
    try:
        got = getattr(ops, op)(**inputs)
    except (TypeError, ValueError) as error:
        if not re.search(r"\w+: expected .*, got", str(error)):
            raise
        return
    # the damage may still fit, like one more image in a batch: then the result must be right
    with mtlkit.use_backend("reference"):
        exact = getattr(ops, op)(**{n: t.double() if isinstance(t, torch.Tensor) else t for n, t in inputs.items()})
    assert_accurate(op, got, exact)
