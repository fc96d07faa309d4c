"""Finding the parameters in files of training code, which contain other things, too."""

import pytest
import torch
from torch import Tensor

from mtlkit.models import create_model
from mtlkit.models._state_dict import unwrapped

MODEL = create_model("medmamba_t", depths=(1,), dims=(8,), d_state=2, num_classes=2)
STATE = dict(MODEL.state_dict())
OLD = {name: torch.zeros_like(value) for name, value in STATE.items()}


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in STATE.items()}


@pytest.mark.parametrize(
    ("content", "entry"),
    [
        (STATE, ""),
        (prefixed("module."), ""),
        ({"model": STATE, "epoch": 3, "optimizer": {"state": {}}}, "model"),
        ({"state_dict": prefixed("module.")}, "state_dict"),
        ({"state_dict": prefixed("model."), "pytorch-lightning_version": "2.5"}, "state_dict"),
        ({"state_dict": prefixed("network.")}, "state_dict"),
        ({"state_dict": prefixed("model._orig_mod.")}, "state_dict"),
        ({"model_state_dict": STATE, "loss": 0.3}, "model_state_dict"),
        ({"model": OLD, "model_ema": STATE}, "model_ema"),
        ({"state_dict": OLD, "state_dict_ema": prefixed("module.")}, "state_dict_ema"),
        ({"model": {"module": prefixed("net.")}}, "model.module"),
        (STATE | {"total_ops": torch.zeros(1), "layers.0.total_params": torch.zeros(1), "version": 2}, ""),
    ],
)
def test_wrappers(content, entry):
    found = unwrapped(content, MODEL)
    assert found.entry == entry
    assert found.others == ()
    assert list(found.tensors) == list(STATE)
    assert all(found.tensors[name] is value for name, value in STATE.items())


def test_what_is_beside_the_parameters_is_named():
    content = {"state_dict": prefixed("model.") | {"loss.weight": torch.ones(2), "n_averaged": torch.ones(())}}
    found = unwrapped(content, MODEL)
    assert list(found.tensors) == list(STATE)
    assert found.others == ("loss.weight", "n_averaged")


def test_what_holds_itself_ends():
    content = {}
    content["model"] = content
    with pytest.raises(ValueError, match="there are no parameters in it"):
        unwrapped(content, MODEL)
