"""Decoder levels of task interaction on a GPU, with the sizes and peers of the CPU benchmarks."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import gpu
import torch
from gpu_providers import why_no_backend
from gpu_workloads import DTYPES
from interaction_workloads import BEHIND_RELU, BOUNDS, PASSES, VARIANTS, exact_results, level_problem, level_shape
from providers import BOTH, BY_NAME, FORWARD
from torch import Tensor

import mtlkit
from mtlkit._accuracy import largest_error
from mtlkit.operators.floors import Floor, Limits, memory_floor
from mtlkit.testing import (
    INTERACTION_SHAPES,
    ROUNDING,
    InteractionInputs,
    InteractionShape,
    assert_accurate,
    relative_error,
)

# Detects wrong wiring; the rows hold each peer's accuracy. PyTorch rounds a float32 convolution's input to 10 bits.
PEER_BOUND = {torch.float32: 1e-2, torch.bfloat16: 0.2}

Tensors = dict[str, Tensor]


class LevelGiven(NamedTuple):
    """Arguments of a call and gradients of its outputs, on the GPU."""

    inputs: InteractionInputs
    cotangents: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LevelProvider:
    """One implementation: a provider of providers.py, and how to select it on a GPU."""

    name: str
    label: str
    call: Callable[..., tuple[Tensor, Tensor]]
    why_absent: Callable[[str], str | None] = lambda op: None
    context: Callable[[], AbstractContextManager] = nullcontext
    own: bool = False


LEVEL_PROVIDERS = (
    *(
        LevelProvider(
            f"mtlkit-{backend}",
            f"mtlkit, {label}",
            BY_NAME["mtlkit"].task_interaction,
            functools.partial(why_no_backend, backend),
            functools.partial(mtlkit.use_backend, backend),
            own=True,
        )
        for backend, label in (("cuda", "CUDA"), ("triton", "Triton"))
    ),
    LevelProvider("eager", "eager PyTorch", BY_NAME["eager"].task_interaction),
    LevelProvider("torch-compile", "torch.compile", BY_NAME["torch-compile"].task_interaction),
)


class LevelCase(NamedTuple):
    """A benchmark row."""

    shape_name: str  # with its batch
    dtype: torch.dtype
    layout: str
    direction: str
    provider: LevelProvider

    op = "task_interaction"

    def __str__(self) -> str:
        return f"{self.group}-{self.provider.name}"

    @property
    def group(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        layout = "" if self.layout == "nchw" else f"-{self.layout}"
        return f"{self.op}-{self.shape_name}-{dtype}{layout}-{self.direction}"

    @property
    def shape(self) -> InteractionShape:
        return level_shape(self.shape_name)

    @property
    def batch(self) -> int:
        return self.shape.B

    @property
    def bytes(self) -> int:
        """The least number of bytes to read and write."""
        s = self.shape
        return PASSES[self.direction] * s.B * s.C * s.H * s.W * self.dtype.itemsize

    @property
    def unit(self) -> tuple[str, int]:
        return "bytes", self.bytes

    def floor(self, limits: Limits) -> Floor:
        return memory_floor(self.bytes, limits)

    def problem(self) -> LevelGiven:
        wanted = level_problem(self.op, self.shape_name, self.dtype, BY_NAME["eager"], layout=self.layout)
        device = gpu.device()

        def give(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.detach().to(device).requires_grad_(t.requires_grad)

        x, f, tim, upa = wanted.forward.args
        inputs = InteractionInputs(give(x), give(f), type(tim)(*map(give, tim)), type(upa)(*map(give, upa)))
        return LevelGiven(inputs, tuple(t.to(device) for t in wanted.cotangents))

    def run(self, given: LevelGiven) -> Tensors:
        """Final map and vector and, for the direction `forward_backward`, every gradient, by name."""
        names = ("seg", "clf")
        call = functools.partial(self.provider.call, *given.inputs, signals=self.shape.signals)
        if self.direction == FORWARD:
            with torch.no_grad():
                return dict(zip(names, call(), strict=True))
        outputs, tensors = call(), given.inputs.named_tensors()
        gradients = torch.autograd.grad(outputs, list(tensors.values()), given.cotangents)
        found = {name: t.detach() for name, t in zip(names, outputs, strict=True)}
        return found | dict(zip(tensors, gradients, strict=True))

    def another(self, given: LevelGiven) -> LevelGiven:
        """The same problem with the map and the output's gradient at another place in memory."""
        x = given.inputs.x.detach().clone().requires_grad_()
        return LevelGiven(given.inputs._replace(x=x), (given.cotangents[0].clone(), given.cotangents[1]))

    def nbytes(self, given: LevelGiven) -> int:
        return given.inputs.x.nbytes + given.cotangents[0].nbytes

    def check(self, results: Tensors) -> tuple[float, float]:
        """Checks the results; returns the largest error relative to a norm, and the map's largest absolute error."""
        exact = exact_results(self.shape_name, self.dtype)
        own, half = self.provider.own, self.dtype in ROUNDING
        plain = plain_results(self) if own and half else {}
        errors = []
        for name, result in results.items():
            t = result.cpu()
            if own and name not in (BEHIND_RELU if half else BOUNDS):
                errors.append(assert_accurate(name, t, exact[name], plain.get(name), gradient=name != "seg"))
                continue
            errors.append(relative_error(t, exact[name]))
            bound = PEER_BOUND[self.dtype]
            if own:
                bound = BOUNDS[name] + (3 * relative_error(plain[name], exact[name]) if half else 0)
            assert errors[-1] <= bound, f"{name}: relative error {errors[-1]:.1e} is beyond {bound:.0e}"
        return max(errors), largest_error(results["seg"].cpu(), exact["seg"])


def plain_results(case: LevelCase) -> Tensors:
    """Results of eager PyTorch on the same 16-bit numbers on the same GPU, as the policy needs them."""
    eager = next(provider for provider in LEVEL_PROVIDERS if provider.name == "eager")
    return _plain_results(case._replace(provider=eager, direction=BOTH))


@functools.lru_cache(maxsize=1)
def _plain_results(case: LevelCase) -> Tensors:
    return {name: t.cpu() for name, t in case.run(case.problem()).items()}


def cases() -> list[LevelCase]:
    """All rows whose provider is installed; rows with the same exact results are adjacent."""
    if not torch.cuda.is_available():
        return []
    present = [provider for provider in LEVEL_PROVIDERS if not provider.why_absent(LevelCase.op)]
    rows = [(name, dtype, "nchw") for name in INTERACTION_SHAPES for dtype in DTYPES]
    rows += [variant for variant in VARIANTS if variant not in rows]  # channels-last maps and three signals
    return [
        LevelCase(*row, direction, provider) for row in rows for direction in (FORWARD, BOTH) for provider in present
    ]
