import pytest
import torch
from torch import Tensor

from harness.layouts import far_apart
from mtlkit.operators._launch import address, argument
from mtlkit.operators.dwconv_silu import dwconv_silu_reference, dwconv_silu_torch
from mtlkit.testing import assert_accurate

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "channels_last", "half", "sparse"]
# one pixel, one row, one column, one channel; channels that fill packs and blocks, and that do not; columns of several
# images in one block, and of one image in several; heights of a strip, one less and one more
SHAPES = [(1, 1, 1, 1), (2, 3, 1, 5), (1, 34, 6, 1), (2, 1, 4, 9), (3, 20, 2, 4), (1, 32, 5, 33), (2, 36, 9, 13)]
NAMES = ("x", "weight", "bias")


def in_layout(x: Tensor, layout: str, fill: float = float("nan")) -> Tensor:
    """The same numbers: dense in either format, half of twice as many channels, or every second pixel of an image."""
    batch, channels, height, width = x.shape
    if layout == "contiguous":
        home = x.new_full((batch, channels, height, width), fill)
    elif layout == "channels_last":
        home = x.new_full((batch, height, width, channels), fill).permute(0, 3, 1, 2)
    elif layout == "half":
        home = x.new_full((batch, height, width, 2 * channels), fill).permute(0, 3, 1, 2)[:, :channels]
    else:
        home = x.new_full((batch, channels, 2 * height, 2 * width), fill)[:, :, ::2, ::2]
    return home.copy_(x)


def make(shape, dtype=torch.float32, layout="channels_last", bias=True) -> list[Tensor | None]:
    x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(shape[1], 3, 3) / 2
    return [in_layout(x.to(dtype), layout), weight, torch.randn(shape[1]) if bias else None]


def assert_written(t: Tensor) -> None:
    """Checks that the complete output was written, and nothing around it."""
    assert t.isfinite().all()
    assert (t if t._base is None else t._base).isfinite().sum() == t.numel()


def arguments_of(x, weight, bias) -> dict[str, object]:
    """The arguments of the kernels of both directions."""
    return {"sizes": x.shape, "x": argument(x), "weight": address(weight), "bias": address(bias), "stream": 0}


def run(kernels, inputs, dy, layout="channels_last", multiprocessors=1) -> dict[str, Tensor]:
    """The kernels' output and gradients by name."""
    x, weight, bias = inputs
    unset = torch.full_like(x, float("nan"))
    y, dx = in_layout(unset, layout), in_layout(unset, layout)
    arguments = arguments_of(*inputs)
    assert kernels.cuda_dwconv_silu_forward(**arguments, y=argument(y)) == 0
    parts = kernels.cuda_dwconv_silu_parts(sizes=x.shape, multiprocessors=multiprocessors)
    partials = torch.full((parts, x.shape[1], 10), float("nan"))
    status = kernels.cuda_dwconv_silu_backward(
        **arguments, dy=argument(dy), dx=argument(dx), partials=address(partials), parts=parts
    )
    assert status == 0, kernels.cuda_error_string(status)
    for t in (y, dx, partials):
        assert_written(t)
    sums = partials.sum(0)
    got = {"y": y, "dx": dx, "dweight": sums[:, :9].reshape(weight.shape), "dbias": sums[:, 9]}
    return {name: t for name, t in got.items() if name != "dbias" or bias is not None}


def expected(function, inputs, dy) -> dict[str, Tensor]:
    inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = function(inputs[0], inputs[1][:, None], inputs[2])
    given = {name: t for name, t in zip(NAMES, inputs, strict=True) if t is not None}
    gradients = torch.autograd.grad(y, list(given.values()), dy)
    return {"y": y, **{f"d{name}": g for name, g in zip(given, gradients, strict=True)}}


def check(kernels, inputs, dy, layout="channels_last", multiprocessors=1) -> dict[str, Tensor]:
    got = run(kernels, inputs, dy, layout, multiprocessors)
    exact = expected(dwconv_silu_reference, [None if t is None else t.double() for t in inputs], dy.double())
    low = [None if t is None else t.to(dy.dtype) for t in inputs]
    plain = expected(dwconv_silu_torch, low, dy) if dy.dtype != torch.float32 else exact
    assert got.keys() == exact.keys()
    for name, value in got.items():
        assert_accurate(name, value, exact[name], plain[name], gradient=name != "y")
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_accurate(kernels, layout, dtype):
    for shape in SHAPES:
        gradient, output = (LAYOUTS[LAYOUTS.index(layout) - k] for k in (1, 2))
        dy = in_layout(torch.randn(shape).to(dtype), gradient)
        check(kernels, make(shape, dtype, layout, bias=shape[1] != 20), dy, output)


@pytest.mark.parametrize("shape", [(3, 36, 11, 13), (2, 18, 33, 15)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["channels_last", "half"])
def test_channels_in_packs(kernels, layout, dtype, shape):
    dy = in_layout(torch.randn(shape).to(dtype), layout)
    for multiprocessors in (1, 5):
        check(kernels, make(shape, dtype, layout), dy, layout, multiprocessors)


def test_expanded_gradient(kernels):
    check(kernels, make((2, 16, 3, 4)), torch.ones(()).expand(2, 16, 3, 4))


@pytest.mark.parametrize("channels", [32, 31])
def test_repeats_bit_by_bit_in_any_order(kernels, channels):
    inputs, dy = make((3, channels, 14, 9)), in_layout(torch.randn(3, channels, 14, 9), "channels_last")
    results = []
    for seed in range(4):
        kernels.seed(seed)
        results.append(run(kernels, inputs, dy))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


def test_more_channels_than_a_grid_is_high(kernels):
    check(kernels, make((1, 66_000, 2, 1)), in_layout(torch.randn(1, 66_000, 2, 1), "channels_last"))


def test_part_counts_agree(kernels):
    inputs, dy = make((4, 16, 20, 12)), in_layout(torch.randn(4, 16, 20, 12), "channels_last")
    one, many = (run(kernels, inputs, dy, multiprocessors=count) for count in (1, 100))
    parts = kernels.cuda_dwconv_silu_parts
    assert [parts(sizes=(4, 16, 20, 12), multiprocessors=count) for count in (1, 100)] == [2, 8]
    assert parts(sizes=(4, 4000, 20, 12), multiprocessors=100) == 1
    for name in ("y", "dx"):
        assert torch.equal(one[name], many[name])
    torch.testing.assert_close(one["dweight"], many["dweight"])


@pytest.mark.parametrize("channels", [16, 13])
def test_images_beyond_32_bit_offsets(kernels, channels):
    x, weight, bias = make((2, channels, 3, 4), torch.float16)
    dy = in_layout(torch.randn(2, channels, 3, 4).half(), "channels_last")
    near = run(kernels, [x, weight, bias], dy)
    far_x, far_dy = (far_apart(t.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for t in (x, dy))
    far = run(kernels, [far_x, weight, bias], far_dy)
    assert all(torch.equal(near[name], far[name]) for name in near)


def test_unknown_dtypes_are_refused(kernels):
    x = torch.ones(1, 4, 3, 3, dtype=torch.float64)
    status = kernels.cuda_dwconv_silu_forward(**arguments_of(x, torch.ones(4, 3, 3), None), y=argument(x))
    assert kernels.cuda_error_string(status) == "invalid argument"
