"""rms_norm and layer_norm of a sum, compared with their formulas in PyTorch."""

import pytest
from mamba_workloads import SHAPES, Row, measured, moved, normal
from providers import BOTH, FORWARD
from torch import Tensor

from mtlkit import ops

EPS = 1e-5


def written_out(x: Tensor, residual: Tensor, weight: Tensor, norm: str) -> Tensor:
    total = x + residual
    total = total if norm == "rms_norm" else total - total.mean(-1, keepdim=True)
    return total * (total.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight


def ours(x: Tensor, residual: Tensor, weight: Tensor, norm: str) -> Tensor:
    return getattr(ops, norm)(x, weight, residual=residual, eps=EPS)


PROVIDERS = {"mtlkit": ours, "eager": written_out}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("direction", [FORWARD, BOTH])
@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
def test_residual_norm(norm, direction, provider, measure) -> None:
    s = SHAPES["vim_tiny_batch4"]
    size = s.B, s.L, s.D // 2  # size of the residual stream, half as wide as the block
    tensors = {"x": normal(*size), "residual": normal(*size) + 1, "weight": normal(size[-1])}
    row, exact = (Row(lambda f=f, **given: f(**given, norm=norm), tensors) for f in (PROVIDERS[provider], written_out))
    maps = 3 if direction == FORWARD else 8  # x, residual and y; then also x, residual, dy and two gradients
    unit = moved(maps * tensors["x"].numel())
    measured(measure, "residual_norm", f"{norm}-vim_tiny_batch4", direction, provider, row, exact, unit)
