"""Modules whose parameters may be used without calling the module."""

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations

from mtlkit._as_made import as_made


class Further(nn.Linear):
    """A subclass of a linear layer, which may compute anything."""


def test_a_plain_module():
    assert as_made(nn.Linear(2, 3), nn.Linear)
    assert not as_made(nn.Linear(2, 3), nn.Conv2d)
    assert not as_made(Further(2, 3), nn.Linear)
    assert not as_made(None, nn.Linear)
    assert not as_made(parametrizations.weight_norm(nn.Linear(2, 3)), nn.Linear)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks(kind):
    module = nn.Linear(2, 3)
    with getattr(module, f"register_{kind}_hook")(lambda *_: None):
        assert not as_made(module, nn.Linear)
    assert as_made(module, nn.Linear)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_of_all_modules(kind):
    with getattr(torch_module, f"register_module_{kind}_hook")(lambda *_: None):
        assert not as_made(nn.Linear(2, 3), nn.Linear)
    assert as_made(nn.Linear(2, 3), nn.Linear)


def test_a_forward_of_its_own():
    module = nn.Linear(2, 3)
    module.forward = torch.relu
    assert not as_made(module, nn.Linear)
