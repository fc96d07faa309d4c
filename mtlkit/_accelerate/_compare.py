"""Checks that a layer and its replacement give the same outputs.

Parameters do not show in which order a layer scans, so both layers run on a small random image and must agree. They run
in float32 with the same random parameters, because initial values, or zeros, could hide a difference. Some code enters
a CUDA device even for tensors on the CPU; these contexts are disabled. If the original still needs a GPU and has a
published layout, the replacement is compared with the published formula instead.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtlkit._accelerate._share import NotRecognised, Plan, Shared, require
from mtlkit.ops import use_backend

# In float32, another order of summation changes the output by 1e-6, another scan order by 1e-1. GPUs may use TF32.
BOUND = {"cpu": 1e-4}
BOUND_ELSEWHERE = 5e-3
CUDA_CONTEXTS = ("device", "device_of", "set_device", "stream", "synchronize")
NEEDS_GPU = re.compile(
    r"(Runtime|Value|Assertion|NotImplemented)Error: .*(cuda|triton|active driver|\bgpu\b)", re.IGNORECASE
)


@dataclass(frozen=True)
class Match:
    """A replacement that passed the comparison.

    Attributes:
        ours: the replacement.
        error: relative difference of the outputs; None if they were not compared.
        formula: whether it was compared with the published formula, because the original needs a GPU.
    """

    ours: Shared
    error: float | None
    formula: bool = False


class _Bare(nn.Module):
    """Calls the forward of a layer without its hooks."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: Tensor) -> object:
        return self.layer.forward(*inputs)


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    modes = {child: child.training for child in module.modules()}
    try:
        for child in modes:
            child.training = False
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


@contextmanager
def _without_cuda_contexts(device: torch.device) -> Iterator[None]:
    """Makes the contexts of torch.cuda no-ops for tensors that are not on a GPU, as if a GPU were available."""
    names = CUDA_CONTEXTS if device.type != "cuda" else ()
    kept = {name: getattr(torch.cuda, name) for name in names}
    try:
        for name in names:
            setattr(torch.cuda, name, lambda *_, **__: nullcontext())
        yield
    finally:
        for name, function in kept.items():
            setattr(torch.cuda, name, function)


def compare(original: nn.Module, plan: Plan) -> Match:
    """Returns the first replacement that gives the outputs of the original, and the difference.

    Raises:
        NotRecognised: no replacement does, or the original does not run.
    """
    device = next(original.parameters()).device
    require(device.type != "meta", "it is on the meta device, where nothing can be compared; check=False swaps it")
    values = {name: value.to(device) for name, value in plan.values.items()}
    bound = BOUND.get(device.type, BOUND_ELSEWHERE)
    failure, least = None, float("inf")
    for inputs, makers in plan.attempts:
        given = _on(device, inputs)
        try:
            with _without_cuda_contexts(device):
                exact = _run(original, values, given, plan.outputs)
        except NotRecognised:
            raise
        except Exception as error:  # foreign layers may raise anything on an unsuitable image
            failure = failure or f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            continue
        for make in makers:
            ours = make()
            error = _error(_run(ours, values, given, plan.outputs), exact)
            if error <= bound:
                return Match(ours, error)
            least = min(least, error)
            failure = failure or "its output has another shape, or is not finite"
    if least < float("inf"):
        raise NotRecognised(f"it computes something else: on random input the outputs differ by {least:.0%}")
    if device.type == "cuda" or not NEEDS_GPU.match(failure or ""):
        raise NotRecognised(
            f"it does not run here ({failure}), so that nothing can be compared; where its scan is missing, "
            "mtlkit.compat.install_mamba_ssm() before the import supplies one, and check=False swaps by structure alone"
        )
    require(plan.published, f"its own code needs a GPU ({failure}): accelerate the model there, or with check=False")
    inputs, makers = plan.attempts[0]
    ours, given = makers[0](), _on(device, inputs)
    with use_backend("reference"):
        exact = _run(ours, values, given, plan.outputs)
    error = _error(_run(ours, values, given, plan.outputs), exact)
    require(
        error <= bound, f"its own code needs a GPU ({failure}), and mtlkit's differs from its formula by {error:.0%}"
    )
    return Match(ours, error, formula=True)


def _on(device: torch.device, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.to(device) if isinstance(value, Tensor) else value for value in inputs)


def _run(layer: nn.Module, values: dict[str, Tensor], inputs: tuple[Any, ...], outputs: int) -> tuple[Tensor, ...]:
    owned: dict[tuple[nn.Module, str], str] = {}  # a part with two names gets its values once
    for name in values:
        path, _, leaf = name.rpartition(".")
        owned.setdefault((layer.get_submodule(path), leaf), name)
    replaced = {f"layer.{name}": values[name] for name in owned.values()}
    with torch.no_grad(), torch.autocast(inputs[0].device.type, enabled=False), _in_eval_mode(layer):
        found = functional_call(_Bare(layer), replaced, inputs, tie_weights=False)
    found = (found,) if outputs == 1 else found
    right = isinstance(found, tuple) and len(found) == outputs and all(isinstance(y, Tensor) for y in found)
    if not right:
        raise NotRecognised(f"it returns something else than {outputs} tensor{'s' * (outputs > 1)}")
    return found


def _error(got: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """Returns the largest `_difference` of the outputs."""
    return max(_difference(g, e) for g, e in zip(got, exact, strict=True))


def _difference(got: Tensor, exact: Tensor) -> float:
    """Returns |got - exact| / |exact| in the 2-norm; infinity instead of NaN."""
    if got.shape != exact.shape:
        return float("inf")
    error = ((got - exact).double().norm() / exact.double().norm()).item()
    return error if error < float("inf") else float("inf")
