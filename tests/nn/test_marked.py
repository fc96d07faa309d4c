"""Marks of parameters survive when another Parameter replaces one."""

import copy
import io

import pytest
import torch

from mtlkit.nn import SS2D, Mamba

LAYERS = {"SS2D": lambda **options: SS2D(4, **options), "Mamba": lambda **options: Mamba(4, **options)}


def saved_and_loaded(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def assigned(layer):
    layer.load_state_dict({name: value.clone() for name, value in layer.state_dict().items()}, assign=True)
    return layer


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("change", [copy.deepcopy, saved_and_loaded, assigned, torch.nn.Module.double])
def test_marks_stay(make, change):
    def marked(layer):
        return [name for name, value in layer.named_parameters() if getattr(value, "_no_weight_decay", False)]

    layer = make()
    wanted = marked(layer)
    assert len(wanted) == 2
    assert marked(change(layer)) == wanted


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_marks_come_with_memory(make):
    layer = make(device="meta").to_empty(device="cpu")
    assert sum(getattr(value, "_no_weight_decay", False) for value in layer.parameters()) == 2
