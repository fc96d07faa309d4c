"""torch.jit: traced models use mtlkit's kernels; errors of unsupported features name an alternative."""

import io

import pytest
import torch
from torch import nn

import mtlkit
from harness.third_party_models import NETWORKS, accelerated
from mtlkit.models import create_model
from mtlkit.testing import assert_accurate

pytestmark = [  # torch.jit warns that it is deprecated, and about each checked shape
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "torch.jit.TracerWarning")
]

PAIR = {"encoder": "resnet18", "decoder_dims": (16, 12, 8, 8), "clf_dim": 16, "levels": (1,), "hmsf": False}
IMAGES = (2, 3, 32, 32)
MODELS = {name: lambda make=make: accelerated(make()) for name, make in NETWORKS.items()}
MODELS |= {"btinet": lambda: create_model("btinet", **PAIR)}


def traced(model: nn.Module) -> torch.jit.ScriptModule:
    with torch.no_grad():
        return torch.jit.trace(model, torch.rand(IMAGES), check_trace=False)


@pytest.mark.parametrize("name", MODELS)
def test_traced_models_compute_the_same(name):
    model = MODELS[name]().eval()
    file = io.BytesIO()
    torch.jit.save(traced(model), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for size in (IMAGES, (3, 3, 64, 32)):
        images = torch.rand(size)
        with torch.no_grad():
            got, expected = loaded(images), model(images)
        assert torch.equal(loaded(images)[0].detach(), got[0])  # gradients may be enabled if nothing requires them
        for g, e in zip(got, expected, strict=True):
            assert_accurate("output", g, e)


def test_tracing_with_gradients_names_restore():
    model = MODELS["medmamba"]().eval()
    images = torch.rand(IMAGES)
    with pytest.raises(RuntimeError, match=r"trace under torch.no_grad\(\), or call mtlkit.restore\(model\)"):
        torch.jit.trace(model, images)
    mtlkit.restore(model)
    assert torch.jit.trace(model, images)(images).requires_grad


def test_gradients_of_what_was_traced_without_name_restore():
    model = MODELS["medmamba"]().eval()
    logits = traced(model)(torch.rand(IMAGES))
    with pytest.raises(RuntimeError, match=r"traced under torch.no_grad\(\) .* mtlkit.restore\(model\) before"):
        logits.sum().backward()


def test_scripting_names_restore():
    with pytest.raises(RuntimeError, match=r"call mtlkit.restore\(model\) first"):
        torch.jit.script(MODELS["medmamba"]())
