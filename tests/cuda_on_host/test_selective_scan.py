import pytest
import torch
from torch import Tensor

import mtlkit
from harness.cuda_on_host import far_apart
from mtlkit.ops import selective_scan
from mtlkit.testing import SelectiveScanShape, assert_accurate

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OPTIONAL = ("D", "z", "delta_bias")
# every N with a kernel of its own, some between, and the most; one token, one channel; channels at and beside a
# block's, grouped and not; tokens at and beside a tile's; B and C constant
SHAPES = [
    SelectiveScanShape(1, 1, 1, 16),
    SelectiveScanShape(2, 65, 17, 1),
    SelectiveScanShape(1, 64, 16, 2),
    SelectiveScanShape(3, 18, 15, 3, G=3),
    SelectiveScanShape(1, 66, 20, 4, G=2),
    SelectiveScanShape(1, 33, 32, 8),
    SelectiveScanShape(2, 33, 35, 16),
    SelectiveScanShape(1, 12, 21, 16, G=12),
    SelectiveScanShape(1, 10, 33, 17),
    SelectiveScanShape(1, 5, 18, 64),
    SelectiveScanShape(1, 5, 18, 100),
    SelectiveScanShape(1, 5, 10, 256),
    SelectiveScanShape(2, 17, 34, 16, G=0),
    SelectiveScanShape(1, 5, 10, 200, G=0),
]


def run(inputs: dict[str, Tensor], softplus: bool = True) -> dict[str, Tensor]:
    """Output, last state and gradients by name, of a loss on both."""
    inputs = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    out, last = selective_scan(**inputs, delta_softplus=softplus, return_last_state=True)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype) for t in (out, last)]
    gradients = torch.autograd.grad((out, last), list(inputs.values()), weights)
    return {"out": out, "last": last, **{f"d{name}": g for name, g in zip(inputs, gradients, strict=True)}}


def check(inputs: dict[str, Tensor], softplus: bool = True) -> None:
    got = run(inputs, softplus)
    with mtlkit.use_backend("reference"):
        exact = run({name: t.double() for name, t in inputs.items()}, softplus)
    with mtlkit.use_backend("torch"):
        plain = run(inputs, softplus) if inputs["u"].dtype != torch.float32 else exact
    for name, value in got.items():
        assert_accurate(name, value, exact[name], plain[name], gradient=name.startswith("d"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accurate(on_host, shape, dtype):
    check(shape.inputs(dtype))


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("constant", [(), ("B",), ("C",), ("B", "C")], ids=str)
@pytest.mark.parametrize("left_out", [(), ("D",), ("z",), ("delta_bias",), OPTIONAL], ids=str)
def test_argument_combinations(on_host, left_out, constant, softplus):
    inputs = SelectiveScanShape(2, 6, 19, 4).inputs()
    fixed = SelectiveScanShape(2, 6, 19, 4, G=0).inputs(seed=1)
    inputs = {name: t for name, t in inputs.items() if name not in left_out} | {name: fixed[name] for name in constant}
    if not softplus:
        inputs["delta"] = inputs["delta"].abs() * 0.1
        if "delta_bias" in inputs:
            inputs["delta_bias"] = inputs["delta_bias"].abs() * 0.01
    check(inputs, softplus)


@pytest.mark.parametrize("multiprocessors", [4, 40])
@pytest.mark.parametrize("shape", [(2, 1), (4, 1), (16, 1), (16, 3), (16, 0), (33, 1)], ids=str)
def test_split_into_chunks(on_host, shape, multiprocessors):
    states, groups = shape
    on_host(multiprocessors)
    check(SelectiveScanShape(1, 9, 777, states, G=groups).inputs())


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_repeats_bit_by_bit_in_any_order(on_host, kernels, groups):
    inputs, results = SelectiveScanShape(2, 40, 130, 16, G=groups).inputs(), []
    for seed in range(3):
        kernels.seed(seed)
        results.append(run(inputs))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


def test_sequences_beyond_32_bit_offsets(on_host):
    inputs = SelectiveScanShape(2, 20, 36, 16).inputs(torch.float16)
    near, far = (
        run(inputs),
        run({name: far_apart(t) if name in ("u", "delta", "z") else t for name, t in inputs.items()}),
    )
    assert all(torch.equal(near[name], far[name]) for name in near)


def test_writes_every_element(on_host, monkeypatch):
    for name in ("empty", "empty_like"):
        allocate = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, allocate=allocate, **o: allocate(*a, **o).fill_(float("nan")))
    for shape in (
        SelectiveScanShape(1, 5, 21, 16),
        SelectiveScanShape(1, 5, 420, 4),
        SelectiveScanShape(1, 6, 21, 3, G=0),
    ):
        for multiprocessors in (1, 40):
            on_host(multiprocessors)
            check(shape.inputs())
