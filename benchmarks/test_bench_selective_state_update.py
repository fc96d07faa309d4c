"""selective_state_update for one token, compared with its formula in plain PyTorch."""

import pytest
import torch
from mamba_workloads import Row, measured, moved, normal
from providers import FORWARD
from torch import Tensor

import mtlkit

STATES = 16


def step(**tensors: Tensor) -> Tensor:
    """Updates the state in place: repeated calls continue from the previous state."""
    return mtlkit.ops.selective_state_update(**tensors, dt_softplus=True)


def plain_step(**tensors: Tensor) -> Tensor:
    with mtlkit.use_backend("torch"):
        return step(**tensors)


PROVIDERS = {"mtlkit": step, "eager": plain_step}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize(("batch", "channels"), [(1, 384), (1, 1536), (16, 1536)])
def test_selective_state_update(batch, channels, provider, measure) -> None:
    tensors = {
        "state": normal(batch, channels, STATES),
        "x": normal(batch, channels),
        "dt": normal(batch, channels),
        "A": -torch.arange(1.0, STATES + 1).repeat(channels, 1),
        "B": normal(batch, STATES),
        "C": normal(batch, STATES) + 1,
        "D": normal(channels),
        "z": normal(batch, channels) + 1,
    }
    row, exact = Row(PROVIDERS[provider], tensors), Row(plain_step, tensors)
    unit = moved(2 * batch * channels * STATES)  # the state, read and written
    measured(measure, "selective_state_update", f"{batch}x{channels}", FORWARD, provider, row, exact, unit)
