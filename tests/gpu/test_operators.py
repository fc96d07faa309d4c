"""GPU-specific tests of operators against the CPU's float64 results; test_matrix.py has the general ones."""

import pytest
import torch

import mtlkit
from harness.calls import DTYPES, NAMES, assert_same, conv_call, norm_call, one_of_each, scan_call, ss2d_call
from harness.layouts import NCHW, spread
from mtlkit.testing import SS2D_SHAPES, SelectiveScanShape, SS2DShape

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("poisoned")]


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
    def function(u: torch.Tensor, **others: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": mtlkit.ops.ss2d(u, **others, out_dtype=torch.promote_types(u.dtype, torch.float32))}

    wide = ss2d_call(SS2DShape(1, 20, 5, 9, 16, 3), dtype)._replace(function=function)
    assert wide.check(device)["y"].dtype == torch.float32


@pytest.mark.parametrize("states", [1, 2, 4, 8, 16, 33])
def test_selective_scan_split_into_chunks(states, backend, device):
    scan_call(SelectiveScanShape(1, 9, 2011, states)).check(device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_calls(dtype, backend, device):
    """Many images, rows or channels."""
    ss2d_call(SS2DShape(70, 40, 9, 7, 16, 3), dtype).check(device)
    ss2d_call(SS2DShape(70, 40, 9, 7, 16, 3), dtype, NCHW).check(device)
    scan_call(SelectiveScanShape(70, 40, 65, 16, G=4), dtype).check(device)
    norm_call((3136, 192), dtype, parameters=torch.float32).check(device)
    conv_call((40, 96, 28, 28), dtype, parameters=torch.float32).check(device)
    conv_call((40, 96, 28, 28), dtype, NCHW, parameters=torch.float32).check(device)


# --- special arguments ------------------------------------------------------------------------------------------------


def test_more_channels_than_a_grid_has_rows(backend, device):
    scan_call(SelectiveScanShape(1, 70_000, 3, 1)).check(device)
    ss2d_call(SS2DShape(1, 70_000, 1, 2, 1, 1)).check(device)
    conv_call((1, 70_000, 2, 2)).check(device)


@pytest.mark.parametrize("name", ["ss2d", "selective_scan", "dwconv_silu"])
def test_strided_views(name, backend, device):
    """Every other column or token of the first argument gives the same bits as its copy."""
    call = one_of_each()[name]
    leaves = call.leaves(device)
    first = next(iter(leaves))
    view = spread(-1)(leaves[first].detach()).requires_grad_()
    assert_same(call.results(leaves | {first: view}), call.results(leaves))


@pytest.mark.parametrize("name", NAMES)
def test_empty_batch(name, backend, device):
    call = one_of_each()[name]
    names = {"u", "x_dbl", "delta", "z", "x"} | {n for n in "BC" if n in call.inputs and call.inputs[n].dim() > 2}
    empty = call._replace(inputs={n: t[:0] if n in names else t for n, t in call.inputs.items()})
    for result in empty.run(device).values():
        assert not result.any()


def test_tensors_on_different_devices(backend, device):
    inputs = one_of_each()["ss2d"].leaves(device)
    with pytest.raises(ValueError, match="A_logs"):
        mtlkit.ops.ss2d(**inputs | {"A_logs": inputs["A_logs"].cpu()})


def test_float64_falls_back_unless_asked_for(backend, device):
    call = one_of_each(torch.float64)["ss2d"]
    with pytest.raises(ValueError, match=f"backend '{backend}' was requested but cannot run ss2d.*float64"):
        call.run(device)
    with mtlkit.use_backend("auto"):
        call.check(device)
