"""Decoder levels of task interaction: the measured calls, their exact results, and the lower bound of their time."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from providers import BOTH, BY_NAME, FORWARD, LEVELS, PROVIDERS, Provider, Workload
from torch import Tensor
from workloads import HALF, Case, seconds_of_copy, shortest

import mtlkit
from mtlkit._accuracy import largest_error
from mtlkit.ops import TIMParameters, UPAParameters
from mtlkit.testing import INTERACTION_SHAPES, InteractionInputs, InteractionShape, assert_accurate, relative_error

# Passes over a map that every implementation needs: forward reads the map for the sums, reads it again and writes it;
# backward reads the map and the output's gradient twice, and writes the map's gradient.
PASSES = {FORWARD: 3, BOTH: 8}
REFERENCE_ELEMENTS = 12_000_000  # maps up to this size get exact results from the reference, within seconds
# Where rounding moves an element of the projection across 0, its ReLU switches and these gradients jump, in plain
# PyTorch as well; among millions of elements this happens. PyTorch's convolution computes its bias's gradient only to
# 3e-3.
BEHIND_RELU = ("x", "proj_weight", "proj_bias")
BOUNDS = dict.fromkeys(BEHIND_RELU, 5e-3)  # in float32

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
ALIGNMENT = "_alignment"  # suffix of a shape's name: three signals instead of two variances
# In addition to every shape in float32 with two signals: shape, dtype and layout.
VARIANTS = (
    *((name, HALF, "nchw") for name in LEVELS),
    *((name, torch.float32, "channels_last") for name in LEVELS),
    *((name + ALIGNMENT, torch.float32, "nchw") for name in LEVELS),
)
PEAK = LEVELS[2]  # peak memory is measured here, too

# Where the fixed cost of a call is measured.
CALL_LEVELS = {f"{side}x{side}": InteractionShape(2, 8, side, side, 16) for side in (1, 7)}


def level_shape(name: str) -> InteractionShape:
    if name in CALL_LEVELS:
        return CALL_LEVELS[name]
    shape = INTERACTION_SHAPES[name.removesuffix(ALIGNMENT)]
    return replace(shape, signals="alignment") if name.endswith(ALIGNMENT) else shape


class LevelProblem(NamedTuple):
    """A call with all its data."""

    tensors: dict[str, Tensor]
    forward: Callable[[], tuple[Tensor, Tensor]]
    cotangents: tuple[Tensor, Tensor]

    def run(self, direction: str) -> dict[str, Tensor]:
        """Final map and vector and, for the direction `forward_backward`, every gradient, by name."""
        if direction == FORWARD:
            with torch.no_grad():
                return dict(zip(("seg", "clf"), self.forward(), strict=True))
        outputs = self.forward()
        gradients = torch.autograd.grad(outputs, list(self.tensors.values()), self.cotangents)
        found = {name: t.detach() for name, t in zip(("seg", "clf"), outputs, strict=True)}
        return found | dict(zip(self.tensors, gradients, strict=True))


@functools.lru_cache(maxsize=2)
def inputs_of(shape: InteractionShape, dtype: torch.dtype, work: torch.dtype, layout: str) -> InteractionInputs:
    """Values in `dtype`, returned as `work`; the same tensors for every row of a shape."""

    def give(name: str, t: Tensor | None) -> Tensor | None:
        return None if t is None else t.detach().to(work).requires_grad_(name not in ("norm_mean", "norm_var"))

    if work == dtype:
        x, f, tim, upa = shape.inputs(dtype, memory_format=LAYOUTS[layout])
    else:
        x, f, tim, upa = inputs_of(shape, dtype, dtype, layout)
    tim, upa = (type(p)(*(give(name, t) for name, t in p._asdict().items())) for p in (tim, upa))
    return InteractionInputs(give("x", x), give("f", f), TIMParameters(*tim), UPAParameters(*upa))


@functools.lru_cache(maxsize=2)
def cotangents_of(shape: InteractionShape, dtype: torch.dtype, work: torch.dtype, layout: str) -> tuple[Tensor, Tensor]:
    """As from a loss that grows with the outputs: for pure noise, the sums behind the gates would almost cancel."""
    if work != dtype:
        seg, clf = (t.to(work) for t in cotangents_of(shape, dtype, dtype, layout))
        return seg, clf
    given, generator = inputs_of(shape, dtype, dtype, layout)[:2], torch.Generator().manual_seed(1)
    seg, clf = (t.detach() + torch.randn(t.shape, generator=generator).to(dtype) for t in given)
    return seg, clf


def level_problem(
    _op: str,
    shape_name: str,
    dtype: torch.dtype,
    provider: Provider,
    work: torch.dtype | None = None,
    layout: str = "nchw",
) -> LevelProblem:
    work, shape = work or dtype, level_shape(shape_name)
    inputs = inputs_of(shape, dtype, work, layout)
    cotangents = cotangents_of(shape, dtype, work, layout)
    forward = functools.partial(provider.task_interaction, *inputs, signals=shape.signals)
    return LevelProblem(inputs.named_tensors(), forward, cotangents)


@functools.lru_cache(maxsize=1)
def exact_results(shape_name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Results in float64: from the reference if that takes seconds, else from a backend that is tested against it."""
    s = level_shape(shape_name)
    backend = "reference" if s.B * s.C * s.H * s.W <= REFERENCE_ELEMENTS else "auto"
    with mtlkit.use_backend(backend):
        return level_problem("", shape_name, dtype, BY_NAME["mtlkit"], torch.float64).run(BOTH)


@functools.lru_cache(maxsize=1)
def plain_results(shape_name: str, direction: str) -> dict[str, Tensor]:
    """Results of plain PyTorch on 16-bit input, the yardstick of 16-bit accuracy."""
    return level_problem("", shape_name, HALF, BY_NAME["eager"]).run(direction)


class LevelCase(Case):
    """A benchmark row."""

    @property
    def shape(self) -> InteractionShape:
        return level_shape(self.workload.shape_name)

    @property
    def map_bytes(self) -> int:
        s = self.shape
        return s.B * s.C * s.H * s.W * self.workload.dtype.itemsize

    @property
    def bytes(self) -> int:
        """The least number of bytes to read and write."""
        return PASSES[self.workload.direction] * self.map_bytes

    @property
    def tells_memory(self) -> bool:
        w = self.workload
        return self.key is not None and w.shape_name == PEAK and self.provider.name != "torch-compile"

    @property
    def unit(self) -> tuple[str, int]:
        return "bytes", self.bytes

    def columns(self, problem: LevelProblem) -> dict[str, Any]:
        beside = yardsticks(self, problem)
        floor = beside["copy_s"] * self.bytes / (2 * self.map_bytes)
        layout = {} if self.workload.layout == "nchw" else {"layout": self.workload.layout}
        return super().columns(problem) | layout | {"map_bytes": self.map_bytes, "floor_s": floor} | beside

    def problem(self) -> LevelProblem:
        w = self.workload
        return level_problem(w.op, w.shape_name, w.dtype, self.provider, layout=w.layout)

    def check(self, results: dict[str, Tensor]) -> tuple[float, float]:
        w = self.workload
        exact = exact_results(w.shape_name, w.dtype)
        plain = plain_results(w.shape_name, w.direction) if w.dtype == HALF else {}
        errors = []
        for name, result in results.items():
            if name in BOUNDS and not plain:
                error = relative_error(result, exact[name])
                assert error <= BOUNDS[name], f"{name}: relative error {error:.2e} is beyond {BOUNDS[name]}"
            else:
                error = assert_accurate(name, result, exact[name], plain.get(name), gradient=name != "seg")
            errors.append(error)
        return max(errors), largest_error(results["seg"], exact["seg"])


def yardsticks(case: LevelCase, problem: LevelProblem) -> dict[str, float]:
    """Seconds of a copy of the map (one read, one write) and, for forward, of the bare 1 x 1 convolution."""
    x, weight, bias = (problem.tensors[name].detach() for name in ("x", "proj_weight", "proj_bias"))
    found = {"copy_s": seconds_of_copy(x)}
    if case.workload.direction == FORWARD:
        found["conv_s"] = shortest(lambda: F.conv2d(x, weight[:, :, None, None], bias))
    return found


def cases() -> list[LevelCase]:
    """All rows whose provider is installed, grouped by shape so that a shape's exact results are computed once."""
    found = []
    rows = [(name, torch.float32, "nchw") for name in INTERACTION_SHAPES]
    for shape_name, dtype, layout in (*rows, *VARIANTS):
        s = level_shape(shape_name)
        for direction in (FORWARD, BOTH):
            workload = Workload("task_interaction", shape_name, dtype, direction, s.B, s.B * s.H * s.W, layout)
            providers = (p for p in PROVIDERS if p.task_interaction and not p.why_absent())
            found += [LevelCase(workload, provider) for provider in providers if provider.serves(workload)]
    return found
