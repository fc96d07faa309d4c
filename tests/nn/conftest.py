"""Shared by the tests of layers."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mtlkit
from mtlkit import _native

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "golden_ssm.json").read_text())
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}  # the stored values have seven decimals
RUNNING = ("running_mean", "running_var", "num_batches_tracked")  # the golden values leave these at their start


COUNTERS = ("num_batches_tracked", "running_signals")  # counted in training; Keras does not have them


@pytest.fixture(params=["reference", "torch", "cpu"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every CPU backend in turn."""
    if request.param == "cpu" and _native.C is None:
        pytest.skip(_native.why_not)
    with mtlkit.use_backend(request.param):
        yield request.param


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The dtypes of the golden values."""
    return request.param


@pytest.fixture
def golden() -> dict:
    """The golden values, by name."""
    return GOLDEN


@pytest.fixture
def assert_golden() -> Callable[[str, nn.Module, torch.dtype], None]:
    """Loads all parameters of a golden value into a layer, by name, and compares the layer's output."""

    def check(name: str, layer: nn.Module, dtype: torch.dtype) -> None:
        entry = GOLDEN[name]

        def tensor(value: list) -> Tensor:
            return torch.tensor(value, dtype=dtype)

        layer = layer.to(dtype).eval()
        state = {p["name"]: tensor(p["value"]).reshape(p["shape"]) for p in entry["params"]}
        missing, unexpected = layer.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(key.endswith(RUNNING) for key in missing)
        y = tensor(entry["y"])
        got = layer(tensor(entry["x"]))
        assert got.dtype == dtype
        assert got.shape == y.shape
        assert (got - y).abs().max() <= TOLERANCE[dtype]

    return check


MTL_GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "golden_mtl_bus.json").read_text())


@pytest.fixture
def mtl_golden() -> dict:
    """The golden values of MBDI and BTI-Net, by name."""
    return MTL_GOLDEN


@pytest.fixture
def keras_golden() -> Callable[[str, nn.Module, torch.dtype], tuple[nn.Module, dict, dict]]:
    """A layer with all parameters of a value in golden_mtl_bus.json, and that value's inputs and outputs.

    Returns the layer in eval mode, the inputs by name and the outputs by name, as tensors.
    """

    def load(name: str, layer: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, dict, dict]:
        entry = MTL_GOLDEN[name]

        def tensors(values: dict) -> dict[str, Tensor]:
            return {key: torch.tensor(value, dtype=dtype) for key, value in values.items()}

        state = {}
        stems = {w["name"].removesuffix(".pointwise") for w in entry["weights"] if w["name"].endswith(".pointwise")}
        for weight in entry["weights"]:
            stem, kind = weight["name"].rsplit(".", 1)
            if stem in stems and kind == "bias":
                kind = "pointwise.bias"
            kind = {
                "gamma": "weight",
                "beta": "bias",
                "depthwise": "depthwise.weight",
                "pointwise": "pointwise.weight",
            }.get(kind, kind)
            state[f"{stem}.{kind}"] = torch.tensor(weight["value"], dtype=dtype).reshape(weight["shape"])
        layer = layer.to(dtype).eval()
        missing, unexpected = layer.load_state_dict(state, strict=False)
        assert not unexpected
        assert all(key.rsplit(".", 1)[-1] in COUNTERS for key in missing), missing
        return layer, tensors(entry["inputs"]), tensors(entry["outputs"])

    return load


@pytest.fixture
def gradients() -> Callable[..., dict[str, Tensor]]:
    """The output of a layer and the gradient of its input and every parameter, by name, under one backend."""

    def run(layer: nn.Module, x: Tensor, backend: str, autocast: torch.dtype | None = None) -> dict[str, Tensor]:
        layer.zero_grad()
        x = x.detach().clone().requires_grad_()
        with mtlkit.use_backend(backend), torch.autocast("cpu", autocast, enabled=autocast is not None):
            y = layer(x)
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        y.backward(cotangent.to(y.dtype))
        found = {"output": y, "x": x.grad} | {name: p.grad for name, p in layer.named_parameters()}
        assert all(tensor is not None for tensor in found.values())
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    return run
