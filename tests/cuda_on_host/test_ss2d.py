import pytest
import torch
from torch import Tensor

import mtlkit
from harness.cuda_on_host import far_apart
from mtlkit.ops import ss2d
from mtlkit.testing import SS2DShape, assert_accurate

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# every N with a kernel of its own, some between, and the most; one pixel, one row, one column, one channel; channels at
# and beside a block's; pixels at and beside a tile's
SHAPES = [
    SS2DShape(1, 1, 1, 1, 16, 1),
    SS2DShape(2, 65, 1, 17, 1, 2),
    SS2DShape(1, 64, 16, 1, 2, 3),
    SS2DShape(1, 7, 3, 5, 3, 1),
    SS2DShape(1, 66, 4, 5, 4, 6),
    SS2DShape(1, 33, 4, 8, 8, 5),
    SS2DShape(1, 5, 3, 3, 11, 2),
    SS2DShape(2, 33, 5, 7, 16, 4),
    SS2DShape(1, 10, 6, 11, 17, 24),
    SS2DShape(1, 5, 3, 6, 64, 3),
    SS2DShape(1, 5, 3, 6, 100, 1),
    SS2DShape(1, 5, 2, 5, 256, 2),
]


def run(inputs: dict[str, Tensor], dy: Tensor, out_dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Output and gradients by name."""
    inputs = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    y = ss2d(**inputs, out_dtype=out_dtype)
    gradients = torch.autograd.grad(y, list(inputs.values()), dy)
    return {"y": y, **{f"d{name}": g for name, g in zip(inputs, gradients, strict=True)}}


def check(inputs: dict[str, Tensor], dy: Tensor) -> dict[str, Tensor]:
    got = run(inputs, dy)
    with mtlkit.use_backend("reference"):
        exact = run({name: t.double() for name, t in inputs.items()}, dy.double())
    with mtlkit.use_backend("torch"):
        plain = run(inputs, dy) if dy.dtype != torch.float32 else exact
    for name, value in got.items():
        assert_accurate(name, value, exact[name], plain[name], gradient=name != "y")
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accurate(on_host, shape, dtype):
    for memory_format in (torch.channels_last, torch.contiguous_format):
        inputs = shape.inputs(dtype, memory_format=memory_format)
        check(inputs, torch.randn(inputs["u"].shape).to(dtype))


@pytest.mark.parametrize("multiprocessors", [4, 40])
@pytest.mark.parametrize("N", [1, 2, 4, 8, 16, 33])
def test_split_into_chunks(on_host, N, multiprocessors):
    inputs = SS2DShape(1, 9, 21, 37, N, 2).inputs()
    on_host(multiprocessors)
    check(inputs, torch.randn(inputs["u"].shape))


# Multiprocessors, and into how many launches of pairs, chunks, windows and slices of images backward is cut. Lengths
# leave the last tile, window, chunk and slice of a shape with less than the others, or the last chunk with more.
CUTS = [
    (SS2DShape(2, 17, 9, 15, 16, 4), 1, (1, 1, 3, 2)),
    (SS2DShape(1, 7, 17, 23, 16, 3), 2, (2, 3, 3, 1)),
    (SS2DShape(5, 33, 5, 7, 16, 4), 1, (1, 1, 1, 3)),
    (SS2DShape(3, 17, 7, 10, 16, 4), 1, (1, 1, 2, 3)),
    (SS2DShape(2, 3, 13, 5, 1, 3), 1, (1, 1, 2, 1)),
    (SS2DShape(1, 5, 13, 12, 33, 2), 40, (2, 3, 2, 1)),
    (SS2DShape(1, 70, 9, 7, 16, 3), 40, (2, 1, 1, 1)),
    (SS2DShape(1, 48, 10, 20, 16, 4), 40, (2, 3, 1, 1)),
    (SS2DShape(1, 5, 10, 20, 16, 4), 40, (2, 3, 2, 1)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "multiprocessors", "cut"), CUTS, ids=str)
def test_cut_into_launches(on_host, kernels, shape, multiprocessors, cut, dtype):
    on_host(multiprocessors)
    sizes = (shape.B, shape.D, shape.H, shape.W, shape.N, shape.R)
    plan = kernels.cuda_ss2d_plan(sizes=sizes, gpu=(multiprocessors, 227 << 10), backward=True)
    longest = max(plan.chunk_tiles, plan.tiles - (plan.chunks - 1) * plan.chunk_tiles)
    assert (2 // plan.pairs, plan.chunks, -(-longest // plan.window_tiles), -(-shape.B // plan.images)) == cut
    inputs = shape.inputs(dtype)
    check(inputs, torch.randn(inputs["u"].shape).to(dtype))


@pytest.mark.parametrize(("height", "launches"), [(3, 4), (10, 8)])
def test_few_launches_of_the_backward_pass_of_one_image(on_host, kernels, height, launches):
    """For each pair of directions the scan and the sums of its parts; in chunks also these and the sums of theirs."""
    on_host(40)
    inputs = SS2DShape(1, 48, height, 20, 16, 4).inputs()
    y = ss2d(**{name: t.requires_grad_() for name, t in inputs.items()})
    before = kernels.launches()
    y.sum().backward()
    assert kernels.launches() - before == launches


@pytest.mark.parametrize("channels", [40, 20])
def test_repeats_bit_by_bit_in_any_order(on_host, kernels, channels):
    inputs = SS2DShape(2, channels, 17, 15, 16, 3).inputs()
    dy, results = torch.randn(inputs["u"].shape), []
    for seed in range(3):
        kernels.seed(seed)
        results.append(run(inputs, dy))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_wide_output_of_narrow_input(on_host, dtype):
    inputs = SS2DShape(1, 20, 5, 9, 16, 3).inputs(dtype)
    dy = torch.randn(inputs["u"].shape)
    got = run(inputs, dy, torch.float32)
    with mtlkit.use_backend("reference"):
        exact = run({name: t.double() for name, t in inputs.items()}, dy.double(), torch.float64)
    assert got["y"].dtype == torch.float32
    assert_accurate("y", got["y"], exact["y"])


def test_images_beyond_32_bit_offsets(on_host):
    inputs = SS2DShape(2, 20, 3, 12, 16, 2).inputs(torch.float16)
    dy = torch.randn(2, 3, 12, 20).half()
    far = inputs | {"u": far_apart(inputs["u"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)}
    near, far = run(inputs, dy.permute(0, 3, 1, 2)), run(far, far_apart(dy).permute(0, 3, 1, 2))
    assert all(torch.equal(near[name], far[name]) for name in near)


def test_writes_every_element(on_host, monkeypatch):
    for name in ("empty", "empty_like"):
        allocate = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, allocate=allocate, **o: allocate(*a, **o).fill_(float("nan")))
    for shape in (SS2DShape(1, 5, 7, 3, 16, 2), SS2DShape(1, 5, 20, 21, 4, 2)):
        for multiprocessors in (1, 40):
            on_host(multiprocessors)
            inputs = shape.inputs()
            check(inputs, torch.ones(()).expand(inputs["u"].shape))
