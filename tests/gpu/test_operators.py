"""Every operator that has GPU kernels, output and every gradient, against the CPU's results in float64."""

import pytest
import torch

import mtlkit
from harness.calls import (
    CHANNELS_LAST,
    CONTIGUOUS,
    DTYPES,
    NAMES,
    assert_same,
    conv_call,
    norm_call,
    one_of_each,
    scan_call,
    ss2d_call,
)
from mtlkit.testing import SS2D_SHAPES, SelectiveScanShape, SS2DShape

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("_poisoned")]

# every N with a kernel of its own, some between, and the most; one pixel, one row, one column, one channel; channels at
# and beside a block's; pixels at and beside a tile's; many images
SS2D = [
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
    SS2DShape(70, 40, 9, 7, 16, 3),
]
SCANS = [
    SelectiveScanShape(1, 1, 1, 16),
    SelectiveScanShape(2, 65, 17, 1),
    SelectiveScanShape(1, 64, 16, 2),
    SelectiveScanShape(3, 18, 15, 3, G=3),
    SelectiveScanShape(1, 66, 20, 4, G=2),
    SelectiveScanShape(1, 33, 32, 8),
    SelectiveScanShape(2, 33, 35, 16),
    SelectiveScanShape(1, 12, 21, 16, G=12),
    SelectiveScanShape(1, 10, 33, 17),
    SelectiveScanShape(1, 5, 18, 100),
    SelectiveScanShape(1, 5, 10, 256),
    SelectiveScanShape(2, 17, 34, 16, G=0),
    SelectiveScanShape(70, 40, 65, 16, G=4),
]
# every kernel at its borders: channels of 8 and of 32 lanes, and such that no pack divides
ROWS = [(1, 1), (3, 4), (35, 96), (33, 128), (9, 132), (8, 512), (11, 516), (5, 1024), (3, 1028), (4, 37), (3136, 192)]
MAPS = [(1, 1, 1, 1), (2, 3, 1, 5), (1, 34, 6, 1), (2, 1, 4, 9), (1, 32, 5, 33), (2, 36, 9, 13), (40, 96, 28, 28)]


@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, CONTIGUOUS], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SS2D, ids=str)
def test_ss2d(shape, dtype, memory_format, backend, device):
    ss2d_call(shape, dtype, memory_format).check(device)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("name", SS2D_SHAPES)
def test_ss2d_of_networks(name, dtype, backend, device):
    ss2d_call(SS2D_SHAPES[name], dtype).check(device, "auto")


@pytest.mark.parametrize("N", [1, 2, 4, 8, 16, 33])
def test_ss2d_split_into_chunks(N, backend, device):
    ss2d_call(SS2DShape(1, 9, 33, 61, N, 2)).check(device)


@pytest.mark.parametrize(
    "shape",
    [SS2DShape(2, 96, 29, 28, 16, 6), SS2DShape(32, 96, 28, 28, 16, 6), SS2DShape(16, 768, 7, 7, 16, 24)],
    ids=str,
)
def test_ss2d_cut_into_launches(shape, backend, device):
    """Backward over pairs of directions in chunks, over windows of tokens, and over slices of images."""
    ss2d_call(shape).check(device, "auto")


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_ss2d_wide_output_of_narrow_input(dtype, backend, device):
    def function(u: torch.Tensor, **others: torch.Tensor) -> torch.Tensor:
        return mtlkit.ops.ss2d(u, **others, out_dtype=torch.promote_types(u.dtype, torch.float32))

    wide = ss2d_call(SS2DShape(1, 20, 5, 9, 16, 3), dtype)._replace(function=function)
    assert wide.check(device)["out0"].dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SCANS, ids=str)
def test_selective_scan(shape, dtype, backend, device):
    scan_call(shape, dtype).check(device)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("constant", [(), ("B",), ("C",), ("B", "C")], ids=str)
@pytest.mark.parametrize("without", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")], ids=str)
def test_selective_scan_arguments(without, constant, softplus, backend, device):
    shape = SelectiveScanShape(2, 6, 19, 4)
    scan_call(shape, without=without, constant=constant, softplus=softplus).check(device)


@pytest.mark.parametrize("states", [1, 2, 4, 8, 16, 33])
def test_selective_scan_split_into_chunks(states, backend, device):
    scan_call(SelectiveScanShape(1, 9, 2011, states)).check(device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_norm_gate(shape, dtype, backend, device):
    norm_call(*shape, dtype).check(device)


@pytest.mark.parametrize("without", [("z",), ("weight",), ("bias",), ("weight", "bias", "z")], ids=str)
def test_norm_gate_without_what_is_optional(without, backend, device):
    norm_call(10, 200, without=without).check(device)


@pytest.mark.parametrize("memory_format", [CHANNELS_LAST, CONTIGUOUS], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", MAPS, ids=str)
def test_dwconv_silu(shape, dtype, memory_format, backend, device):
    conv_call(shape, dtype, memory_format, bias=shape[1] != 36).check(device)


# --- what a call may meet ---------------------------------------------------------------------------------------------


def test_more_channels_than_a_grid_has_rows(backend, device):
    scan_call(SelectiveScanShape(1, 70_000, 3, 1)).check(device)
    ss2d_call(SS2DShape(1, 70_000, 1, 2, 1, 1)).check(device)
    conv_call((1, 70_000, 2, 2)).check(device)


@pytest.mark.parametrize("name", ["ss2d", "selective_scan", "dwconv_silu"])
def test_strided_views(name, backend, device):
    """Every other column or token of the first argument: the same bits as from a copy of it."""
    call = one_of_each()[name]
    leaves = call.leaves(device)
    first, dense = next(iter(leaves.items()))
    wide = torch.zeros(*dense.shape[:-1], 2 * dense.shape[-1], device=device)
    wide[..., ::2] = dense.detach()
    assert_same(call.results(leaves | {first: wide[..., ::2].detach().requires_grad_()}), call.results(leaves))


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch(name, backend, device):
    call = one_of_each()[name]
    names = {"u", "x_dbl", "delta", "z", "x"} | {n for n in "BC" if n in call.inputs and call.inputs[n].dim() > 2}
    empty = call._replace(inputs={n: t[:0] if n in names else t for n, t in call.inputs.items()})
    for result in empty.run(device).values():
        assert not result.any()


@pytest.mark.parametrize("name", ["ss2d", "selective_scan", "norm_gate", "dwconv_silu"])
def test_nan_spreads_as_in_the_reference(name, backend, device):
    call = one_of_each()[name]
    first = next(iter(call.inputs))
    spoilt = call.inputs[first].clone()
    spoilt[tuple(n // 2 for n in spoilt.shape)] = float("nan")
    got = call.function(**{n: t.to(device) for n, t in (call.inputs | {first: spoilt}).items()})
    with mtlkit.use_backend("reference"):
        wanted = call.function(**(call.inputs | {first: spoilt}))
    got, wanted = ((t if isinstance(t, tuple) else (t,))[0] for t in (got, wanted))
    assert torch.equal(got.isnan().cpu(), wanted.isnan())


def test_tensors_on_different_devices(backend, device):
    inputs = one_of_each()["ss2d"].leaves(device)
    with pytest.raises(ValueError, match="A_logs"):
        mtlkit.ops.ss2d(**inputs | {"A_logs": inputs["A_logs"].cpu()})


def test_float64_falls_back_unless_asked_for(backend, device):
    call = one_of_each(torch.float64)["ss2d"]
    with pytest.raises(ValueError, match=f"backend '{backend}' was asked for and cannot serve ss2d.*float64"):
        call.run(device)
    with mtlkit.use_backend("auto"):
        call.check(device)


@pytest.mark.parametrize("name", ["ss2d", "selective_scan", "norm_gate", "dwconv_silu"])
def test_opcheck(name, backend, device):
    inputs = one_of_each()[name].leaves(device)
    tail = {"ss2d": (torch.float32, True), "selective_scan": (True, True), "norm_gate": (1e-5,), "dwconv_silu": ()}
    torch.library.opcheck(getattr(torch.ops.mtlkit, name).default, (backend, *inputs.values(), *tail[name]))
