"""Tests specific to ss2d; test_matrix.py has those that all operators share."""

import pytest
import torch

import mtlkit
from harness.calls import ss2d_call
from mtlkit.operators._launch import CHECKPOINT_TOKENS, MAX_STATES
from mtlkit.ops import cross_merge, cross_scan, ss2d
from mtlkit.testing import SS2DShape, assert_accurate

SMALL = SS2DShape(2, 24, 7, 5, 16, 3)


def test_output_keeps_the_memory_format():
    inputs = SMALL.inputs()
    for memory_format in (torch.channels_last, torch.contiguous_format):
        inputs["u"] = inputs["u"].contiguous(memory_format=memory_format)
        for backend in ("reference", "torch", "cpu"):
            with mtlkit.use_backend(backend):
                assert ss2d(**inputs).is_contiguous(memory_format=memory_format), backend


def test_float32_output_of_float16_input():
    """The output may exceed float16's range; a float32 output does not overflow."""
    inputs = SMALL.inputs(torch.float16)
    inputs["Ds"] = torch.full_like(inputs["Ds"], 6e4)
    inputs["u"] = inputs["u"].clamp(0.5, 2)
    assert not ss2d(**inputs).isfinite().all()
    wide = ss2d(**inputs, out_dtype=torch.float32)
    assert wide.dtype == torch.float32
    with mtlkit.use_backend("reference"):
        assert_accurate("y", wide, ss2d(**{name: t.double() for name, t in inputs.items()}))


def test_nothing_is_kept_without_gradients(monkeypatch):
    sizes = []
    allocate = torch.empty

    def recorded(*args, **options):
        tensor = allocate(*args, **options)
        sizes.append(tensor.numel())
        return tensor

    monkeypatch.setattr(torch, "empty", recorded)
    with torch.no_grad():
        ss2d(**SMALL.inputs(requires_grad=True))
    assert not any(sizes)


def test_autocast():
    inputs = SMALL.inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ss2d(**inputs), ss2d(**SMALL.inputs()))
        projected = torch.nn.functional.linear(inputs["u"].permute(0, 2, 3, 1), torch.eye(24)).permute(0, 3, 1, 2)
        assert projected.dtype == torch.bfloat16
        assert ss2d(**{**inputs, "u": projected}).dtype == torch.bfloat16


def test_strong_decay_neither_overflows_nor_lingers():
    """Time steps of 30 and more: each token forgets everything before it."""
    call = ss2d_call(SMALL)
    call.inputs["dt_bias"] += 40
    for backend in ("torch", "cpu"):
        with mtlkit.use_backend(backend):
            assert all(t.isfinite().all() for t in call.check().values())


def test_no_decay_gives_a_cumulative_sum():
    shape = SS2DShape(1, 4, 3, 5, 1, 1)
    inputs = shape.inputs(torch.float64)
    inputs["A_logs"] = torch.full_like(inputs["A_logs"], -60.0)
    us, rows = cross_scan(inputs["u"]), cross_scan(inputs["x_dbl"])
    dt = torch.nn.functional.softplus(
        torch.einsum("bkrl,kdr->bkdl", rows[:, :, :1], inputs["dt_weight"]) + inputs["dt_bias"][None, :, :, None]
    )
    sums = (dt * us * rows[:, :, 1:2]).cumsum(-1) * rows[:, :, 2:3]
    wanted = cross_merge(sums + inputs["Ds"].view(1, 4, -1, 1) * us, shape.H, shape.W)
    assert_accurate("y", ss2d(**inputs), wanted)


def test_cross_merge_undoes_cross_scan():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert torch.allclose(cross_merge(cross_scan(x), 4, 5), 4 * x)


def changed(**changes) -> dict:
    return {**SMALL.inputs(), **changes}


BAD = [
    (changed(u=3.0), TypeError, "u: expected a tensor, got float"),
    (changed(u=torch.zeros(2, 24, 7, 5, dtype=torch.int64)), TypeError, "u: expected float32.*got torch.int64"),
    (changed(u=torch.zeros(24, 7, 5)), ValueError, "u: expected 4 dimensions, got 3"),
    (changed(u=torch.zeros(2, 24, 0, 5)), ValueError, "u: expected shape .*at least 1, got"),
    (changed(u=torch.zeros(2, 25, 7, 5)), ValueError, r"dt_weight: expected shape \(4, D, R\) = \(4, 25, 3\)"),
    (changed(x_dbl=torch.zeros(2, 4, 34, 7, 5)), ValueError, r"x_dbl: expected shape .*\(2, 4, 35, 7, 5\), got"),
    (changed(dt_weight=torch.zeros(4, 24, 0)), ValueError, "dt_weight: expected .*R at least 1"),
    (changed(A_logs=torch.zeros(96, 0)), ValueError, "A_logs: expected .*N at least 1"),
    (changed(Ds=torch.zeros(24)), ValueError, r"Ds: expected shape \(4 D,\) = \(96,\), got \(24,\)"),
    (changed(dt_bias=torch.zeros(4, 24, device="meta")), ValueError, "dt_bias: expected device cpu.*got meta"),
    (changed(u=torch.zeros(2, 24, 7, 5).to_sparse()), ValueError, "u: expected a dense tensor"),
    (changed(out_dtype=torch.int32), TypeError, "out_dtype: expected"),
]


@pytest.mark.parametrize(("inputs", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(inputs, error, message):
    with pytest.raises(error, match=message):
        ss2d(**inputs)


def test_states_beyond_the_kernels_limit():
    inputs = SS2DShape(1, 2, 2, 2, MAX_STATES + 1, 1).inputs()
    with mtlkit.use_backend("cpu"), pytest.raises(ValueError, match=f"at most {MAX_STATES} states"):
        ss2d(**inputs)
    with mtlkit.use_backend("torch"):
        wanted = ss2d(**inputs)
    assert torch.equal(ss2d(**inputs), wanted)


def test_checkpoint_interval_is_the_kernels():
    from mtlkit import _native

    assert _native.C.checkpoint_tokens == CHECKPOINT_TOKENS
