"""Layers and networks on a GPU: output and gradients compared with float64 on the CPU."""

import copy

import pytest
import torch
from torch import Tensor, nn

import mtlkit
from harness.calls import assert_same
from mtlkit.testing import relative_error

pytestmark = pytest.mark.gpu

# Each operator meets the bounds of mtlkit.testing; errors of several float32 layers add up to more.
OUTPUT_BOUND, GRADIENT_BOUND = 1e-5, 1e-4
LAYERS = {
    "SS2D": (lambda: mtlkit.nn.SS2D(24), (2, 9, 11, 24)),
    "SS2D of VMamba": (lambda: mtlkit.nn.SS2D(24, 1, gate=None), (2, 9, 11, 24)),
    "VSSBlock": (lambda: mtlkit.nn.VSSBlock(24), (2, 9, 11, 24)),
    "SSConvSSM": (lambda: mtlkit.nn.SSConvSSM(24).eval(), (2, 9, 11, 24)),
}


def outputs_of(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    """All outputs except the signals and gates of interaction, as tensors."""
    outputs = model(*inputs)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)[:2]


def results(model: nn.Module, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """All outputs as one vector, and all gradients as another, in float64 on the CPU."""
    inputs = tuple(t.detach().requires_grad_() for t in inputs)
    outputs = outputs_of(model, *inputs)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(t.shape, generator=generator).to(t) for t in outputs]
    wanted = [*inputs, *(p for p in model.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(outputs, wanted, weights, allow_unused=True)
    gradients = [g for g in gradients if g is not None]
    return tuple(torch.cat([t.detach().double().cpu().flatten() for t in many]) for many in (outputs, gradients))


def smooth(model: nn.Module) -> nn.Module:
    """Replaces every ReLU by SiLU: gradients of ReLU jump where rounding moves its argument across 0."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return model


def check(model: nn.Module, *inputs: Tensor, device: torch.device) -> None:
    model, inputs = model.float(), tuple(t.float() for t in inputs)
    got = results(copy.deepcopy(model).to(device), *(t.to(device) for t in inputs))
    with mtlkit.use_backend("auto"):
        exact = results(copy.deepcopy(model).double(), *(t.double() for t in inputs))
    with mtlkit.use_backend("torch"):
        plain = results(model, *inputs)
    assert relative_error(got[0], exact[0]) <= OUTPUT_BOUND
    assert relative_error(got[1], exact[1]) <= GRADIENT_BOUND + 2 * relative_error(plain[1], exact[1])


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, backend, device):
    make, size = LAYERS[name]
    check(smooth(make()), torch.randn(size), device=device)


@pytest.mark.parametrize("name", ["SS2D", "SS2D of VMamba"])
def test_without_gradients_to_the_same_bits(name, backend, device):
    make, size = LAYERS[name]
    model, x = make().to(device), torch.randn(size, device=device)
    with torch.no_grad():
        got = model(x)
    assert_same({"y": got}, {"y": model(x).detach()})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_under_autocast(name, dtype, backend, device):
    """The error against float32 is at most 1.5 times that of plain PyTorch under the same autocast."""
    make, size = LAYERS[name]
    model, x = make().to(device), torch.randn(size, device=device)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cuda", dtype):
            got = model(x)
            with mtlkit.use_backend("torch"):
                plain = model(x)
    assert got.isfinite().all()
    assert relative_error(got, exact) <= 1.5 * relative_error(plain, exact) + torch.finfo(dtype).eps


@pytest.mark.parametrize("signals", ["variance", "alignment"])
def test_interaction_level(signals, device):
    level = mtlkit.nn.InteractionLevel(48, 32, signals=signals).eval()
    with mtlkit.use_backend("triton"):
        check(level, torch.randn(3, 48, 14, 10) + torch.randn(3, 48, 1, 1), torch.randn(3, 32), device=device)


@pytest.mark.parametrize("size", [64, 224])
def test_medmamba(size, backend, device):
    model = mtlkit.models.create_model("medmamba_t", num_classes=3, drop_path_rate=0.0).eval()
    check(smooth(model), torch.randn(2, 3, size, size), device=device)


def test_medmamba_trains_and_repeats(backend, device):
    """Five training steps, twice from the same start: the loss decreases, and all bits are equal."""
    start = mtlkit.models.create_model("medmamba_t", num_classes=3, drop_path_rate=0.0).to(device)
    images, labels = torch.randn(6, 3, 64, 64, device=device), torch.arange(6, device=device) % 3

    def losses() -> Tensor:
        model, kept = copy.deepcopy(start).train(), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for _ in range(5):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            kept.append(loss.detach())
        return torch.stack(kept)

    torch.use_deterministic_algorithms(True, warn_only=True)  # for cuDNN's convolutions, too
    first, second = losses(), losses()
    torch.use_deterministic_algorithms(False)
    assert first[-1] < first[0]
    assert_same({"losses": second}, {"losses": first})
