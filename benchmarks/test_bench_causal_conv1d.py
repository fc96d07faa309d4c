"""causal_conv1d, compared with PyTorch's convolution and activation, with channels or tokens contiguous."""

import pytest
import torch.nn.functional as F
from mamba_workloads import SHAPES, Row, measured, moved, normal
from providers import BOTH, FORWARD
from torch import Tensor

from mtlkit.ops import causal_conv1d

WIDTH = 4


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return causal_conv1d(x, weight, bias, activation="silu")


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """mamba-ssm's code for machines without its kernel."""
    a = F.conv1d(x, weight[:, None], bias, padding=WIDTH - 1, groups=x.shape[1])
    return F.silu(a[..., : x.shape[2]])


PROVIDERS = {"mtlkit": ours, "eager": eager}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("direction", [FORWARD, BOTH])
@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
@pytest.mark.parametrize("shape_name", SHAPES)
def test_causal_conv1d(shape_name, layout, direction, provider, measure) -> None:
    s = SHAPES[shape_name]
    x = normal(s.B, s.D, s.L) if layout == "channels_first" else normal(s.B, s.L, s.D).transpose(1, 2)
    tensors = {"x": x, "weight": normal(s.D, WIDTH) / 2, "bias": normal(s.D)}
    maps = 2 if direction == FORWARD else 5  # x and y; then x, dy and dx
    name = f"{shape_name}-{layout}"
    row, exact = Row(PROVIDERS[provider], tensors), Row(eager, tensors)
    measured(measure, "causal_conv1d", name, direction, provider, row, exact, moved(maps * x.numel()))
