"""Workloads: operators at the shapes of mtlkit.testing, and the exact results that they are compared with."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from measuring import Key
from providers import BOTH, BY_NAME, FORWARD, MEDMAMBA_56, PROVIDERS, Provider, Workload
from torch import Tensor

import mtlkit
from mtlkit._accuracy import largest_error
from mtlkit.testing import SS2D_SHAPES, SelectiveScanShape, SS2DShape, assert_accurate

Shape = SS2DShape | SelectiveScanShape
HALF = torch.bfloat16
# The 1-D scan is measured at fewer shapes, because it behaves like SS2D.
SCAN_SHAPES = (*(f"medmamba_t_stage{i}" for i in (1, 2, 3, 4)), "mammo_4view_64", "vmamba_t_stage1")
HALF_ROWS = ((MEDMAMBA_56, FORWARD), (MEDMAMBA_56, BOTH), ("mammo_4view_64", FORWARD))
# For the other operators: one map that fits the caches, one that does not, and one with few pixels.
AROUND_SHAPES = (MEDMAMBA_56, "mammo_4view_64", "medmamba_t_stage4")
AROUND_HALF_ROWS = ((MEDMAMBA_56, BOTH),)
# Where the fixed cost of a call is measured and arithmetic hardly counts. The layer has 8 channels, its scan 16.
CALL_SHAPES = {
    **{f"{side}x{side}": SS2DShape(1, 8, side, side, 4, 2) for side in (1, 7)},
    **{f"layer_{side}x{side}": SS2DShape(1, 16, side, side, 4, 1) for side in (7, 14)},
}
# The least number of maps that an operator must read and write, forward and with backward.
MAPS = {
    "dwconv_silu": {FORWARD: 2, BOTH: 5},  # x and y; then x, dy and dx
    "norm_gate": {FORWARD: 3, BOTH: 8},  # x, z and y; then x, z, dy, dx and dz
}


class Problem(NamedTuple):
    """A call with all its data: the tensors that need gradients, the call, and the gradient of its output."""

    tensors: dict[str, Tensor]
    forward: Callable[[], Tensor]
    dy: Tensor

    def run(self, direction: str) -> dict[str, Tensor]:
        """The output and, for the direction `forward_backward`, every gradient, by name."""
        if direction == FORWARD:
            with torch.no_grad():
                return {"y": self.forward()}
        y = self.forward()
        gradients = torch.autograd.grad(y, list(self.tensors.values()), self.dy)
        return {"y": y.detach(), **dict(zip(self.tensors, gradients, strict=True))}


@dataclass(frozen=True)
class Case:
    """A row: a workload and a provider."""

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
    def key(self) -> Key | None:
        """None for 16-bit and channels-last rows, which no comparison uses."""
        w = self.workload
        plain = w.dtype == torch.float32 and w.layout == "nchw"
        return Key(w.op, w.shape_name, w.direction, self.provider.name) if plain else None

    @property
    def unit(self) -> tuple[str, int]:
        """What a call processes, and how many of it."""
        w = self.workload
        shape = shape_of(w.op, w.shape_name)
        if w.op in MAPS:
            return "bytes", MAPS[w.op][w.direction] * w.tokens * shape.D * w.dtype.itemsize
        return "updates", shape.updates

    @property
    def tells_memory(self) -> bool:
        """Whether peak memory is measured, too, in a separate process."""
        w = self.workload
        measured = w.op in ("ss2d", "ss2d_layer") and self.provider.name in ("mtlkit", "torch")
        return measured and self.key == Key(w.op, MEDMAMBA_56, BOTH, self.provider.name)

    def columns(self, problem: Problem) -> dict[str, Any]:
        """Columns that describe the row, and what its time is compared with."""
        w = self.workload
        return {
            "op": w.op,
            "shape": w.shape_name,
            "dtype": dtype_name(w.dtype),
            "direction": w.direction,
            "provider": self.provider.name,
            "unit": self.unit,
            **(floor_of(self, problem) if w.op in MAPS else {}),
        }

    def problem(self) -> Problem:
        return problem(self.workload.op, self.workload.shape_name, self.workload.dtype, self.provider)

    def check(self, results: dict[str, Tensor]) -> tuple[float, float]:
        """Checks the results; returns the largest error relative to a norm, and the output's largest absolute error."""
        w = self.workload
        exact = exact_results(w.op, w.shape_name, w.dtype, w.direction)
        plain = plain_results(w.op, w.shape_name, w.direction) if w.dtype == HALF else {}
        errors = [
            assert_accurate(name, result, exact[name], plain.get(name), gradient=name != "y")
            for name, result in results.items()
        ]
        return max(errors), largest_error(results["y"], exact["y"])


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def shape_of(op: str, shape_name: str) -> Shape:
    """The named shape; for the 1-D operator the same work in mamba's layout: (B, 4 D, L), one group per direction."""
    s = map_shape(shape_name)
    return SelectiveScanShape(s.B, 4 * s.D, s.H * s.W, s.N, G=4) if op == "selective_scan" else s


def map_shape(shape_name: str) -> SS2DShape:
    return CALL_SHAPES[shape_name] if shape_name in CALL_SHAPES else SS2D_SHAPES[shape_name]


def problem(
    op: str, shape_name: str, dtype: torch.dtype, provider: Provider, work: torch.dtype | None = None
) -> Problem:
    """The problem with values of `dtype`, stored as `work` (default: `dtype`), e.g. float32 values in float64."""
    work = work or dtype
    shape = shape_of(op, shape_name)
    if op == "ss2d_layer":
        torch.manual_seed(0)
        layer = mtlkit.nn.SS2D(d_model=shape.D // 2, d_state=shape.N).to(dtype).to(work).eval()
        x = torch.randn(shape.B, shape.H, shape.W, shape.D // 2).to(dtype).to(work).requires_grad_()
        tensors = {"x": x, **dict(layer.named_parameters())}
        forward = functools.partial(layer, x)
    else:
        tensors = {name: t.to(dtype).to(work).requires_grad_() for name, t in inputs_of(op, shape_name, dtype).items()}
        forward = functools.partial(getattr(provider, op), **tensors)
    like = tensors.get("z", next(iter(tensors.values())))  # in the output's shape and layout
    dy = torch.randn(like.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return Problem(tensors, forward, torch.empty_like(like).copy_(dy))


def inputs_of(op: str, shape_name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Arguments by name, with values of `dtype` except for the parameters of dwconv_silu and norm_gate."""
    shape = shape_of(op, shape_name)
    if op == "dwconv_silu":
        return conv_inputs(shape_name, shape.B, dtype)
    if op == "norm_gate":
        return norm_inputs(shape_name, shape.B, dtype)
    tensors = shape.inputs(dtype)
    if op == "selective_scan":
        del tensors["z"]  # SS2D itself has no gate
    if op == "ss2d_norm_gate":
        _, *norm = norm_inputs(shape_name, shape.B, dtype).items()
        tensors |= dict(norm)
    return tensors


def _map(shape: SS2DShape, images: int, generator: torch.Generator) -> Tensor:
    return torch.randn(images, shape.H, shape.W, shape.D, generator=generator)


def norm_inputs(shape_name: str, images: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """x and z (B, H, W, D) in `dtype`, weight and bias (D,) in float32."""
    s, generator = map_shape(shape_name), torch.Generator().manual_seed(0)
    x, z = (_map(s, images, generator).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(s.D, generator=generator) for _ in range(2))
    return {"x": x, "weight": weight, "bias": bias, "z": z}


def conv_inputs(shape_name: str, images: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """x (B, D, H, W), channels last, in `dtype`; weight (D, 1, 3, 3) and bias (D,) in float32."""
    s, generator = map_shape(shape_name), torch.Generator().manual_seed(0)
    x = _map(s, images, generator).to(dtype).permute(0, 3, 1, 2)
    return {
        "x": x,
        "weight": torch.randn(s.D, 1, 3, 3, generator=generator) / 3,
        "bias": torch.randn(s.D, generator=generator),
    }


@functools.lru_cache(maxsize=2)
def exact_results(op: str, shape_name: str, dtype: torch.dtype, direction: str) -> dict[str, Tensor]:
    """Results in float64: from the reference if that takes seconds, else from a backend that is tested against it."""
    shape = map_shape(shape_name)
    pixels = shape.B * shape.H * shape.W
    if pixels <= 784 or (pixels <= 3136 and direction == FORWARD):
        backend = "reference"
    else:
        backend = "torch" if pixels <= 3136 else "auto"
    with mtlkit.use_backend(backend):
        return problem(op, shape_name, dtype, BY_NAME["mtlkit"], torch.float64).run(direction)


@functools.lru_cache(maxsize=2)
def plain_results(op: str, shape_name: str, direction: str) -> dict[str, Tensor]:
    """Results of plain PyTorch on the same 16-bit input, the yardstick of 16-bit accuracy."""
    with mtlkit.use_backend("torch"):
        return problem(op, shape_name, HALF, BY_NAME["mtlkit"]).run(direction)


def shortest(call: Callable[[], object], rounds: int = 5, seconds: float = 0.1) -> float:
    """Seconds of the fastest of several calls, of two if they take long."""
    times = []
    while len(times) < 2 or (len(times) < rounds and sum(times) < seconds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def seconds_of_copy(x: Tensor) -> float:
    """Seconds to read and write a map once."""
    y = torch.empty_like(x)
    return shortest(lambda: y.copy_(x))


def floor_of(case: Case, problem: Problem) -> dict[str, float]:
    """Seconds of a copy of the map, and of the least data that the case must move, at the same rate."""
    x = problem.tensors["x"].detach()
    copy = seconds_of_copy(x)
    return {"copy_s": copy, "floor_s": copy * case.unit[1] / (2 * x.nbytes)}


def cases(op: str) -> list[Case]:
    """All rows of an operator whose provider is installed."""
    shapes, half_rows = {
        "ss2d": (SS2D_SHAPES, HALF_ROWS),
        "selective_scan": (SCAN_SHAPES, HALF_ROWS),
        "ss2d_layer": ((MEDMAMBA_56,), ()),
        "dwconv_silu": (AROUND_SHAPES, AROUND_HALF_ROWS),
        "norm_gate": (AROUND_SHAPES, AROUND_HALF_ROWS),
        "ss2d_norm_gate": ((MEDMAMBA_56, "medmamba_t_stage4"), ()),
    }[op]
    rows = [(name, torch.float32, direction) for name in shapes for direction in (FORWARD, BOTH)]
    rows += [(name, HALF, direction) for name, direction in half_rows]
    if op == "ss2d_layer":
        providers = [BY_NAME["mtlkit"], BY_NAME["torch"]]
    else:
        providers = [provider for provider in PROVIDERS if getattr(provider, op) and not provider.why_absent()]
    found = []
    for shape_name, dtype, direction in rows:
        s = SS2D_SHAPES[shape_name]
        workload = Workload(op, shape_name, dtype, direction, s.B, s.B * s.H * s.W)
        found += [Case(workload, provider) for provider in providers if provider.serves(workload)]
    return found
