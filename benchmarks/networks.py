"""Complete networks on a real ultrasound frame: their inputs, a training step, and the exact results."""

import copy
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydicom
import torch
import torch.nn.functional as F
from measuring import Key
from pydicom.data import get_testdata_file
from torch import Tensor, nn

import mtlkit
from mtlkit._accuracy import largest_error
from mtlkit.testing import relative_error

SIZE = 224
# Each operator meets the bounds of mtlkit.testing; errors of some sixty float32 layers add up to more. Gradients also
# jump where rounding moves the argument of a ReLU across 0, up to 1e-2 in MedMamba, in plain PyTorch as well, and a
# BatchNorm in training divides by the spread of one image. A training step is therefore compared with plain PyTorch's.
LOGITS_BOUND, GRADIENT_BOUND = 1e-5, 1e-4


@dataclass(frozen=True)
class Network:
    """How a network is measured: without random layers, and training with two images if a BatchNorm gets vectors."""

    options: dict[str, Any]
    training_images: int = 1
    inference_shape: str = "busi_224"
    training_shape: str = "busi_224"
    memory: bool = True  # whether the peak memory of a training step is measured


NETWORKS = {
    "medmamba_t": Network({"num_classes": 2, "drop_path_rate": 0.0}),
    "vmamba_t_s1l8": Network({"num_classes": 2, "drop_path_rate": 0.0}, memory=False),
    "mbdi": Network({"dropout": 0.0}, 2),
    "btinet": Network({"dropout": 0.0}, 2),
    "csa_moe": Network({"dropout": 0.0}, 2),
    "hybrid_vssm": Network({"dropout": 0.0, "drop_path_rate": 0.0}, 1, "mammo_4view_512", "mammo_4view_256"),
}


@functools.cache
def frame() -> Tensor:
    """An ultrasound frame (a lymph node, colour Doppler) that is part of pydicom, with zero mean: (1, 3, 224, 224)."""
    path = get_testdata_file("examples_rgb_color.dcm", download=False)
    pixels = pydicom.dcmread(path).pixel_array.astype(np.float32)  # (240, 320, 3)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # (1, 3, 240, 320)
    image = F.interpolate(image, (SIZE, SIZE), mode="bilinear", antialias=True, align_corners=False)
    return (image - image.mean()) / image.std()


def given(name: str, training: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Inputs of a network: images with an elliptical mask, or four views of an exam."""
    how = NETWORKS[name]
    if "4view" in how.inference_shape:
        size = int((how.training_shape if training else how.inference_shape).rpartition("_")[2])
        view = F.interpolate(frame(), (size, size), mode="bilinear", align_corners=False)
        return (torch.stack([view, view.flip(3), view.flip(2), view.flip(2, 3)], 1).to(dtype),)
    images = torch.cat([frame(), frame().flip(3)])[: how.training_images if training else 1].to(dtype)
    return (images, ellipse(len(images))) if name == "csa_moe" else (images,)


def ellipse(count: int) -> Tensor:
    """Elliptical masks: (count, 1, 224, 224)."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    return ((x / 0.5) ** 2 + (y / 0.3) ** 2 < 1).float().expand(count, 1, SIZE, SIZE)


@functools.cache
def _initial(name: str) -> nn.Module:
    torch.manual_seed(0)
    return mtlkit.models.create_model(name, **NETWORKS[name].options)


def network(name: str) -> nn.Module:
    """A network with the same weights every time."""
    return copy.deepcopy(_initial(name))


def logits_of(output: Tensor | tuple) -> dict[str, Tensor]:
    """The outputs of a network except its gates, by name."""
    outputs = {"cls_logits": output} if isinstance(output, Tensor) else output._asdict()
    return {name: tensor for name, tensor in outputs.items() if name.endswith("logits")}


def joined(output: Tensor | tuple) -> Tensor:
    return output if isinstance(output, Tensor) else torch.cat([t.flatten() for t in logits_of(output).values()])


def infer(model: nn.Module, *inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return joined(model(*inputs))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW as in mtlkit's training on a CPU, in one pass over each parameter."""
    return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)


def train(model: nn.Module, optimizer: torch.optim.Optimizer | None, *inputs: Tensor) -> Tensor:
    """One training step; without an optimizer it computes only the gradients, which stay in the parameters."""
    model.zero_grad()
    output = model(*inputs)
    loss = 0
    for name, logits in logits_of(output).items():
        if name == "seg_logits":
            loss = loss + F.binary_cross_entropy_with_logits(logits, ellipse(len(logits)).to(logits.dtype))
        else:
            rows = logits.flatten(0, -2)
            loss = loss + F.cross_entropy(rows, torch.arange(1, len(rows) + 1) % rows.shape[1])
    loss.backward()
    if optimizer is not None:
        optimizer.step()
    return joined(output).detach()


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@functools.cache
def exact_logits(name: str) -> Tensor:
    """Float64 results of inference."""
    with mtlkit.use_backend("torch"):
        return infer(network(name).double().eval(), *given(name, False, torch.float64))


@functools.lru_cache(maxsize=1)
def exact_step(name: str) -> tuple[Tensor, Tensor]:
    """Logits and gradients in float64; plain PyTorch's gradients would take 6 GB, and are compared in float32."""
    model = network(name).double().train()
    return train(model, None, *given(name, True, torch.float64)), gradients(model)


@functools.cache
def plain(name: str) -> tuple[Tensor, Tensor]:
    """Logits and gradients of plain PyTorch in float32."""
    with mtlkit.use_backend("torch"):
        model = network(name).train()
        return train(model, None, *given(name, True)), gradients(model)


def assert_agrees(what: str, got: Tensor, exact: Tensor, bound: float) -> tuple[float, float]:
    error = relative_error(got, exact)
    assert error <= bound, f"{what}: relative error {error:.1e} is beyond {bound:.0e}"
    assert exact.abs().max() > 0, f"{what}: zero, so that nothing was compared"
    return error, largest_error(got, exact)


def key(name: str, backend: str, direction: str) -> Key:
    how = NETWORKS[name]
    return Key(name, how.training_shape if direction == "training_step" else how.inference_shape, direction, backend)


def images_of(inputs: tuple[Tensor, ...]) -> tuple[str, int]:
    return "images", len(inputs[0].flatten(0, -4))
