"""What is measured: operators at the shapes of mtlkit.testing, and the exact results they are held against."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from providers import BOTH, BY_NAME, FORWARD, MEDMAMBA_56, PROVIDERS, Provider, Workload
from torch import Tensor

import mtlkit
from mtlkit.testing import SS2D_SHAPES, SelectiveScanShape, SS2DShape, assert_accurate

Shape = SS2DShape | SelectiveScanShape
HALF = torch.bfloat16
# The 1-D scan is measured at fewer shapes: what it shows beside SS2D shows there.
SCAN_SHAPES = (*(f"medmamba_t_stage{i}" for i in (1, 2, 3, 4)), "mammo_4view_64", "vmamba_t_stage1")
HALF_ROWS = ((MEDMAMBA_56, FORWARD), (MEDMAMBA_56, BOTH), ("mammo_4view_64", FORWARD))


class Problem(NamedTuple):
    """A call with all its data: what a gradient is wanted of, the call, and the gradient of its output."""

    tensors: dict[str, Tensor]
    forward: Callable[[], Tensor]
    dy: Tensor

    def run(self, direction: str) -> dict[str, Tensor]:
        """The output, and in the direction `forward_backward` every gradient, by name."""
        if direction == FORWARD:
            with torch.no_grad():
                return {"y": self.forward()}
        y = self.forward()
        gradients = torch.autograd.grad(y, list(self.tensors.values()), self.dy)
        return {"y": y.detach(), **dict(zip(self.tensors, gradients, strict=True))}


@dataclass(frozen=True)
class Case:
    """A row: a workload and who does it."""

    workload: Workload
    provider: Provider

    def __str__(self) -> str:
        return f"{self.group.removeprefix(f'{self.workload.op}-')}-{self.provider.name}"

    @property
    def group(self) -> str:
        w = self.workload
        layout = "" if w.layout == "nchw" else f"-{w.layout}"
        return f"{w.op}-{w.shape_name}-{dtype_name(w.dtype)}{layout}-{w.direction}"

    @property
    def updates(self) -> int:
        return shape_of(self.workload.op, self.workload.shape_name).updates

    def problem(self) -> Problem:
        return problem(self.workload.op, self.workload.shape_name, self.workload.dtype, self.provider)

    def check(self, results: dict[str, Tensor]) -> tuple[float, float]:
        """Asserts each result; the largest error relative to the tensor's norm, and the output's largest absolute."""
        w = self.workload
        exact = exact_results(w.op, w.shape_name, w.dtype, w.direction)
        plain = plain_results(w.op, w.shape_name, w.direction) if w.dtype == HALF else {}
        errors = [
            assert_accurate(name, result, exact[name], plain.get(name), gradient=name != "y")
            for name, result in results.items()
        ]
        return max(errors), (results["y"].double() - exact["y"]).abs().max().item()


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def shape_of(op: str, shape_name: str) -> Shape:
    """The named shape; for the 1-D operator the same work in mamba's layout, (B, 4 D, L) with a group a direction."""
    s = SS2D_SHAPES[shape_name]
    return s if op.startswith("ss2d") else SelectiveScanShape(s.B, 4 * s.D, s.H * s.W, s.N, G=4)


def problem(
    op: str, shape_name: str, dtype: torch.dtype, provider: Provider, work: torch.dtype | None = None
) -> Problem:
    """The problem in numbers of `dtype`, given as `work` (default: `dtype`): float64 of float32's numbers, say."""
    work = work or dtype
    shape = shape_of(op, shape_name)
    if op == "ss2d_layer":
        torch.manual_seed(0)
        layer = mtlkit.nn.SS2D(d_model=shape.D // 2).to(dtype).to(work)
        x = torch.randn(shape.B, shape.H, shape.W, shape.D // 2).to(dtype).to(work).requires_grad_()
        tensors = {"x": x, **dict(layer.named_parameters())}
        forward = functools.partial(layer, x)
    else:
        tensors = shape.inputs(dtype)
        if op == "selective_scan":
            del tensors["z"]  # SS2D has no gate inside
        tensors = {name: t.to(work).requires_grad_() for name, t in tensors.items()}
        forward = functools.partial(getattr(provider, op), **tensors)
    first = next(iter(tensors.values()))
    dy = torch.randn(first.shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(work)
    return Problem(tensors, forward, dy)


@functools.lru_cache(maxsize=2)
def exact_results(op: str, shape_name: str, dtype: torch.dtype, direction: str) -> dict[str, Tensor]:
    """Results in float64: from the reference where that takes seconds, else from one tested against it."""
    shape = SS2D_SHAPES[shape_name]
    pixels = shape.B * shape.H * shape.W
    if pixels <= 784 or (pixels <= 3136 and direction == FORWARD):
        backend = "reference"
    else:
        backend = "torch" if pixels <= 3136 else "auto"
    with mtlkit.use_backend(backend):
        return problem(op, shape_name, dtype, BY_NAME["mtlkit"], torch.float64).run(direction)


@functools.lru_cache(maxsize=2)
def plain_results(op: str, shape_name: str, direction: str) -> dict[str, Tensor]:
    """What plain PyTorch makes of the same 16-bit input: the yardstick of 16-bit accuracy."""
    with mtlkit.use_backend("torch"):
        return problem(op, shape_name, HALF, BY_NAME["mtlkit"]).run(direction)


def cases(op: str) -> list[Case]:
    """Every row of an operator whose provider is present."""
    shapes = {"ss2d": SS2D_SHAPES, "selective_scan": SCAN_SHAPES, "ss2d_layer": (MEDMAMBA_56,)}[op]
    rows = [(name, torch.float32, direction) for name in shapes for direction in (FORWARD, BOTH)]
    if op == "ss2d_layer":
        providers = [BY_NAME["mtlkit"], BY_NAME["torch"]]
    else:
        rows += [(name, HALF, direction) for name, direction in HALF_ROWS]
        providers = [provider for provider in PROVIDERS if not provider.why_absent()]
    found = []
    for shape_name, dtype, direction in rows:
        s = SS2D_SHAPES[shape_name]
        workload = Workload(op, shape_name, dtype, direction, s.B, s.B * s.H * s.W)
        found += [Case(workload, provider) for provider in providers if provider.serves(workload)]
    return found
