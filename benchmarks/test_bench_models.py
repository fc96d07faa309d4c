"""Whole networks on one image of 224 x 224: a real ultrasound frame, inference and a training step."""

import functools
from collections.abc import Callable

import numpy as np
import pydicom
import pytest
import torch
import torch.nn.functional as F
from profiling import profile
from pydicom.data import get_testdata_file
from torch import Tensor, nn

import mtlkit
from mtlkit.testing import relative_error

SIZE = 224
BACKENDS = {"mtlkit": "auto", "torch": "torch"}
# Each operator meets the bounds of mtlkit.testing; some sixty layers of float32 in a row add up to more. Gradients also
# jump where the argument of a ReLU rounds to the other side of 0, up to 1e-2 in MedMamba and in plain PyTorch as well:
# they are judged beside plain PyTorch's.
LOGITS_BOUND, GRADIENT_BOUND = 1e-5, 1e-4


@functools.cache
def frame() -> Tensor:
    """An ultrasound frame (a lymph node, colour Doppler) that ships inside pydicom, zero mean: (1, 3, 224, 224)."""
    path = get_testdata_file("examples_rgb_color.dcm", download=False)
    pixels = pydicom.dcmread(path).pixel_array.astype(np.float32)  # (240, 320, 3)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # (1, 3, 240, 320)
    image = F.interpolate(image, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    return (image - image.mean()) / image.std()


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return mtlkit.models.create_model(name, num_classes=2, drop_path_rate=0.0)


def infer(model: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return model(image)


def train(model: nn.Module, optimizer: torch.optim.Optimizer | None, image: Tensor) -> Tensor:
    """One step; without an optimizer its gradients only, which stay in the parameters."""
    model.zero_grad()
    logits = model(image)
    F.cross_entropy(logits, torch.ones(len(image), dtype=torch.long)).backward()
    if optimizer is not None:
        optimizer.step()
    return logits.detach()


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@functools.lru_cache(maxsize=2)
def exact(name: str, training: bool) -> tuple[Tensor, Tensor | None]:
    """Logits and gradients in float64; plain PyTorch's gradients would take 6 GB, and are compared in float32."""
    with mtlkit.use_backend("auto" if training else "torch"):
        model = network(name).double().train(training)
        if not training:
            return infer(model, frame().double()), None
        return train(model, None, frame().double()), gradients(model)


@functools.cache
def plain_gradients(name: str) -> Tensor:
    """Those of plain PyTorch in float32."""
    with mtlkit.use_backend("torch"):
        model = network(name).train()
        train(model, None, frame())
        return gradients(model)


def assert_agrees(what: str, got: Tensor, exact: Tensor, bound: float) -> tuple[float, float]:
    error = relative_error(got, exact)
    assert error <= bound, f"{what}: relative error {error:.1e} is beyond {bound:.0e}"
    assert exact.abs().max() > 0, f"{what}: zero, so that nothing was compared"
    return error, (got.double() - exact).abs().max().item()


def run(measure: Callable, name: str, backend: str, direction: str, call: Callable, check: Callable, **extra) -> None:
    measure(
        call,
        check,
        group=f"{name}-busi_224-float32-{direction}",
        provider=backend,
        unit=("images", len(frame())),
        op=name,
        shape="busi_224",
        dtype="float32",
        direction=direction,
        **extra,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["medmamba_t", "vmamba_t_s1l8"])
def test_inference(name: str, backend: str, measure: Callable) -> None:
    with mtlkit.use_backend(BACKENDS[backend]):
        model = network(name).eval()
        infer(model, frame())
        extra = {"profile": profile(lambda: infer(model, frame()))} if backend == "mtlkit" else {}
        exact_logits, _ = exact(name, False)
        run(
            measure,
            name,
            backend,
            "inference",
            lambda: infer(model, frame()),
            lambda logits: assert_agrees("logits", logits, exact_logits, LOGITS_BOUND),
            **extra,
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["medmamba_t", "vmamba_t_s1l8"])
def test_training(name: str, backend: str, measure: Callable) -> None:
    exact_logits, exact_gradients = exact(name, True)
    with mtlkit.use_backend(BACKENDS[backend]):
        model = network(name).train()
        logits = train(model, None, frame())
        assert_agrees("logits", logits, exact_logits, LOGITS_BOUND)
        bound = GRADIENT_BOUND + 2 * relative_error(plain_gradients(name), exact_gradients)
        errors = assert_agrees("gradients", gradients(model), exact_gradients, bound)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        run(measure, name, backend, "training_step", lambda: train(model, optimizer, frame()), lambda _: errors)
