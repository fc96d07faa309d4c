import pytest
import torch
from torch import Tensor

from harness.layouts import far_apart
from mtlkit.operators._launch import address, argument
from mtlkit.operators.norm_gate import norm_gate_reference, norm_gate_torch
from mtlkit.testing import assert_accurate

# x, and z and out
DTYPES = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
]
# every kernel at its limits: 8 lanes up to 128 channels, 32 lanes up to 512 and 1024, and channels that no pack
# divides; rows below, at and beyond those of a block
SHAPES = [(1, 1), (3, 4), (35, 96), (33, 128), (9, 132), (8, 512), (11, 516), (5, 1024), (3, 1028), (4, 37), (2, 301)]
NAMES = ("x", "weight", "bias", "z")
GUARD = 64  # elements on either side of an output


def guarded(rows: int, channels: int, dtype: torch.dtype, pitch: int = 0) -> Tensor:
    """NaN, in rows `pitch` elements apart, between elements that must stay NaN."""
    home = torch.full((2 * GUARD + rows * (channels + pitch),), float("nan"), dtype=dtype)
    return home[GUARD:-GUARD].view(rows, channels + pitch)[:, :channels]


def assert_written(*outputs: Tensor | None) -> None:
    """Checks that the complete outputs were written, and nothing around them."""
    for t in outputs:
        if t is not None:
            assert t.isfinite().all()
            assert t._base.isfinite().sum() == t.numel()


def make(shape, dtypes, absent="", pitch=0) -> list[Tensor | None]:
    rows, channels = shape
    x_dtype, z_dtype = dtypes
    wide = torch.randn(rows, channels + pitch, dtype=torch.float64)
    inputs = {
        "x": (3 * wide + 1).to(x_dtype)[:, :channels],
        "weight": torch.randn(channels),
        "bias": torch.randn(channels),
        "z": torch.randn(rows, channels).to(z_dtype),
    }
    return [None if name in absent.split() else inputs[name] for name in NAMES]


def arguments_of(x, weight, bias, z) -> dict[str, object]:
    """The arguments of the kernels of both directions."""
    return {
        "sizes": x.shape,
        "x": argument(x),
        "weight": address(weight),
        "bias": address(bias),
        "z": argument(z),
        "eps": 1e-5,
        "stream": 0,
    }


def run(kernels, inputs, dout, pitch=0, multiprocessors=2) -> dict[str, Tensor]:
    """The kernels' output and gradients by name."""
    (rows, channels), z = inputs[0].shape, inputs[3]
    out, dx = guarded(rows, channels, dout.dtype, pitch), guarded(rows, channels, inputs[0].dtype, pitch)
    dz = None if z is None else guarded(rows, channels, z.dtype)
    arguments = arguments_of(*inputs)
    assert kernels.cuda_norm_gate_forward(**arguments, addend=None, out=argument(out)) == 0
    blocks = kernels.cuda_norm_gate_blocks(sizes=(rows, channels), multiprocessors=multiprocessors)
    partials = guarded(blocks, 2 * channels, torch.float32)
    status = kernels.cuda_norm_gate_backward(
        **arguments,
        dout=argument(dout),
        dx=argument(dx),
        dz=argument(dz),
        partials=address(partials),
        blocks=blocks,
    )
    assert status == 0, kernels.cuda_error_string(status)
    assert_written(out, dx, dz, partials)
    dweight, dbias = partials.sum(0).view(2, channels)
    got = {"y": out, "dx": dx, "dweight": dweight, "dbias": dbias, "dz": dz}
    return {name: t for name, t in got.items() if name == "y" or inputs[NAMES.index(name[1:])] is not None}


def expected(function, inputs, dout) -> dict[str, Tensor]:
    x, weight, bias, z = inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
    y = function(x, weight, bias, z, 1e-5)
    given = {name: t for name, t in zip(NAMES, inputs, strict=True) if t is not None}
    gradients = torch.autograd.grad(y, list(given.values()), dout)
    return {"y": y, **{f"d{name}": g for name, g in zip(given, gradients, strict=True)}}


def check(kernels, inputs, dout, pitch=0) -> dict[str, Tensor]:
    got = run(kernels, inputs, dout, pitch)
    exact = expected(norm_gate_reference, [None if t is None else t.double() for t in inputs], dout.double())
    low = [None if t is None else t.to(dout.dtype) for t in inputs]
    plain = expected(norm_gate_torch, low, dout) if dout.dtype != torch.float32 else exact
    assert got.keys() == exact.keys()
    for name, value in got.items():
        assert_accurate(name, value, exact[name], plain[name], gradient=name != "y")
    return got


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_accurate(kernels, shape, dtypes):
    check(kernels, make(shape, dtypes), torch.randn(shape).to(dtypes[1]))


@pytest.mark.parametrize("shape", [(10, 96), (9, 200), (3, 600), (3, 50)], ids=str)
@pytest.mark.parametrize("absent", ["", "z", "weight", "bias", "weight bias z"])
def test_without_what_is_optional(kernels, shape, absent):
    for dtypes in (DTYPES[0], DTYPES[3]):
        check(kernels, make(shape, dtypes, absent), torch.randn(shape).to(dtypes[1]))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_adds_first(kernels, shape, dtypes):
    """The same result as for the sum of the inputs, which is exact for multiples of 1/8 in every dtype."""
    (rows, channels), (x_dtype, out_dtype) = shape, dtypes
    _, *others = make(shape, dtypes)
    first, second = (torch.randint(-8, 8, shape).to(x_dtype) / 8 for _ in range(2))
    apart = torch.empty(rows, channels + 3, dtype=x_dtype)[:, :channels].copy_(second)
    results = []
    for x, addend in ((first + second, None), (first, second), (first, apart)):
        out = guarded(rows, channels, out_dtype)
        arguments = arguments_of(x, *others)
        assert kernels.cuda_norm_gate_forward(**arguments, addend=argument(addend), out=argument(out)) == 0
        assert_written(out)
        results.append(out)
    assert torch.equal(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])  # unaligned rows are summed in another order


@pytest.mark.parametrize("pitch", [4, 3])
@pytest.mark.parametrize("channels", [48, 20])
def test_rows_that_lie_apart(kernels, channels, pitch):
    check(kernels, make((37, channels), DTYPES[1], pitch=pitch), torch.randn(37, channels).bfloat16(), pitch)


@pytest.mark.parametrize("channels", [96, 97])
def test_a_large_mean_does_not_drown_the_variance(kernels, channels):
    x, weight, bias, z = make((4, channels), DTYPES[0])
    check(kernels, [x + 1000, weight, bias, z], torch.randn(4, channels))


@pytest.mark.parametrize("shape", [(70, 96), (30, 50), (20, 520)], ids=str)
def test_repeats_bit_by_bit_in_any_order(kernels, shape):
    inputs, dout = make(shape, DTYPES[0]), torch.randn(shape)
    results = []
    for seed in range(3):
        kernels.seed(seed)
        results.append(run(kernels, inputs, dout))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


def test_block_counts_agree(kernels):
    inputs, dout = make((90, 96), DTYPES[0]), torch.randn(90, 96)
    one, many = (run(kernels, inputs, dout, multiprocessors=count) for count in (1, 100))
    for name in ("y", "dx", "dz"):
        assert torch.equal(one[name], many[name])
    torch.testing.assert_close(one["dweight"], many["dweight"])
    blocks = kernels.cuda_norm_gate_blocks
    assert [blocks(sizes=(90, 96), multiprocessors=count) for count in (1, 2, 100)] == [2, 3, 3]
    assert blocks(sizes=(90, 50), multiprocessors=100) == 3
    assert blocks(sizes=(90, 1028), multiprocessors=100) == 90


@pytest.mark.parametrize("channels", [16, 13])
def test_rows_beyond_32_bit_offsets(kernels, channels):
    inputs = make((2, channels), DTYPES[4])
    dout = torch.randn(2, channels).half()
    near = run(kernels, inputs, dout)
    far = run(kernels, [t if t.dim() == 1 else far_apart(t) for t in inputs], far_apart(dout))
    assert all(torch.equal(near[name], far[name]) for name in near)


def test_unknown_dtypes_are_refused(kernels):
    x, out = torch.ones(2, 4, dtype=torch.float16), torch.ones(2, 4, dtype=torch.bfloat16)
    arguments = arguments_of(x, None, None, None)
    status = kernels.cuda_norm_gate_forward(**arguments, addend=None, out=argument(out))
    assert kernels.cuda_error_string(status) == "invalid argument"
