"""The policy for the accuracy of results."""

import math

import pytest
import torch

from mtlkit import _accuracy
from mtlkit._accuracy import (
    FORWARD_BOUND,
    GRADIENT_BOUND,
    accuracy,
    assert_accurate,
    largest_error,
    relative_error,
)

EXACT = torch.tensor([3.0, 4.0], dtype=torch.float64)


def test_relative_error():
    assert relative_error(EXACT * 1.5, EXACT) == pytest.approx(0.5)
    assert relative_error(EXACT, torch.zeros(2)) == pytest.approx(5)
    assert relative_error(torch.zeros(0), torch.zeros(0)) == 0
    with pytest.raises(RuntimeError):
        relative_error(torch.zeros(2, 3), torch.zeros(3, 2))


def test_blocks_do_not_change_errors(monkeypatch):
    got, exact = torch.rand(4, 5).T, torch.rand(5, 4, dtype=torch.float64)
    difference = got.double() - exact
    monkeypatch.setattr(_accuracy, "BLOCK", 7)
    assert relative_error(got, exact) == pytest.approx((difference.norm() / exact.norm()).item())
    assert largest_error(got, exact) == difference.abs().max()
    got[2, 1] = torch.nan
    assert math.isnan(relative_error(got, exact))
    assert math.isnan(largest_error(got, exact))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gradient", [False, True])
def test_fixed_bounds(dtype, gradient):
    bound = (GRADIENT_BOUND if gradient else FORWARD_BOUND)[dtype]
    exact = EXACT.to(dtype).double()
    assert assert_accurate("y", exact.to(dtype), exact, gradient=gradient) <= bound
    with pytest.raises(AssertionError, match="y: relative error"):
        assert_accurate("y", (exact * (1 + 3 * bound)).to(dtype), exact, gradient=gradient)


def test_half_precision_is_measured_by_plain_pytorch():
    plain = (EXACT * 1.01).bfloat16()
    assert_accurate("y", (EXACT * 1.015).bfloat16(), EXACT, plain)
    with pytest.raises(AssertionError, match="beyond"):
        assert_accurate("y", (EXACT * 1.05).bfloat16(), EXACT, plain)
    with pytest.raises(AssertionError, match="plain PyTorch"):
        assert_accurate("y", EXACT.bfloat16(), EXACT)


def test_zeros_shapes_and_missing_results_fail():
    tiny = torch.full((2,), 1e-30, dtype=torch.float64)
    with pytest.raises(AssertionError):
        assert_accurate("dA", torch.zeros(2), tiny, gradient=True)
    with pytest.raises(AssertionError, match="expected shape"):
        assert_accurate("y", EXACT[:1], EXACT)
    with pytest.raises(AssertionError, match="there is no result"):
        assert_accurate("y", None, EXACT)


def test_a_fault_is_told_without_raising():
    found = accuracy("y", torch.tensor([float("nan"), 4.0]), EXACT)
    assert found.error != found.error
    assert found.fault is not None
    assert "y: relative error nan is beyond" in found.fault
    found = accuracy("y", EXACT.float(), EXACT)
    assert found.fault is None
    assert found.error <= found.bound == FORWARD_BOUND[torch.float32]
