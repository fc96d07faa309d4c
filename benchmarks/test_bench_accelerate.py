"""Models of other codebases before and after `mtlkit.accelerate`: one image of 224 x 224, inference and training."""

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from measuring import Key
from networks import LOGITS_BOUND, assert_agrees, frame, gradients, infer, optimizer_of
from torch import Tensor, nn

import mtlkit
from harness.third_party_models import MedMamba, VMUNet, vmamba

# Restated in plain PyTorch with the published names, one step of the scan per token; and the bound for the gradients:
# where rounding moves the argument of a ReLU across 0, MedMamba's change by up to 1e-2.
NETWORKS = {
    "plain_medmamba_t": (lambda: MedMamba(num_classes=2), 2e-2),
    "plain_vmunet": (lambda: VMUNet(96, 16), 1e-4),
    "plain_vmamba": (lambda: vmamba(96), 1e-4),
}
PROVIDERS = ("accelerated", "plain")


def network(name: str, provider: str) -> nn.Module:
    if provider == "accelerated":
        return copy.deepcopy(accelerated(name))
    torch.manual_seed(0)
    return NETWORKS[name][0]().eval()


@functools.lru_cache(maxsize=1)
def accelerated(name: str) -> nn.Module:
    model = network(name, "plain")
    assert not mtlkit.accelerate(model, strict=True).left
    return model


def train(model: nn.Module, optimizer: torch.optim.Optimizer | None, image: Tensor) -> Tensor:
    """One training step; without an optimizer it computes only the gradients."""
    model.zero_grad()
    output = model(image)
    output.square().mean().backward()
    if optimizer is not None:
        optimizer.step()
    return output.detach()


@functools.lru_cache(maxsize=1)
def exact(name: str) -> tuple[Tensor, Tensor]:
    """Output and gradients in float64; tests compare the accelerated model with the plain one."""
    model = network(name, "accelerated").double()
    return train(model, None, frame().double()), gradients(model)


@pytest.mark.row(key=lambda name, direction, provider: Key(name, "busi_224", direction, provider))
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("direction", ["inference", "training_step"])
@pytest.mark.parametrize("name", NETWORKS)
def test_accelerate(name: str, direction: str, provider: str, measure: Callable) -> None:
    exact_output, exact_gradients = exact(name)
    model = network(name, provider)
    optimizer = optimizer_of(model)
    training = direction == "training_step"

    def check(output: Tensor) -> tuple[float, float]:
        if training:
            assert_agrees("gradients", gradients(model), exact_gradients, NETWORKS[name][1])
        return assert_agrees("output", output, exact_output, LOGITS_BOUND)

    call = functools.partial(train, model, optimizer, frame()) if training else functools.partial(infer, model, frame())
    measure(call, check, unit=("images", 1))
