"""Operators used with SS2D on a GPU (selective_scan, norm_gate, dwconv_silu), each compared with its peers."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from gpu_providers import why_no_backend
from gpu_workloads import (
    BATCHES,
    DTYPES,
    REFERENCE_PIXELS,
    Problem,
    Tensors,
    checked_images,
    compare,
    group_of,
    other_maps,
    run,
    spread,
)
from providers import BOTH, FORWARD, compiled, eager_norm_gate, missing, selective_scan
from torch import Tensor
from workloads import MAPS, conv_inputs, norm_inputs

import mtlkit
from mtlkit.operators.dwconv_silu import dwconv_silu_torch
from mtlkit.operators.floors import Floor, Limits, memory_floor, scan_floor
from mtlkit.testing import SS2D_SHAPES, SelectiveScanShape

Call = Callable[..., Tensor]

# --- what is called ---------------------------------------------------------------------------------------------------


def scan_shape(shape_name: str, batch: int) -> SelectiveScanShape:
    """The work of an SS2D in mamba's layout, (B, 4 D, L) with one group per direction, or of a Vision Mamba block."""
    if shape_name == "vim_tiny":
        return SelectiveScanShape(batch, 384, 197, 16)
    s = SS2D_SHAPES[shape_name]
    return SelectiveScanShape(batch, 4 * s.D, s.H * s.W, s.N, G=4)


def scan_inputs(shape_name: str, images: int, dtype: torch.dtype) -> Tensors:
    """Activations in `dtype`, the scan's parameters in float32; with a gate for Vision Mamba's block."""
    tensors = scan_shape(shape_name, images).inputs()
    if shape_name != "vim_tiny":
        del tensors["z"]
    return {name: t if name in ("A", "D", "delta_bias") else t.to(dtype) for name, t in tensors.items()}


def mamba_ssm_scan(u, delta, A, B, C, D, delta_bias, z=None) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)


class Operator(NamedTuple):
    """How to call an operator, and how many maps it reads and writes, forward and with backward."""

    call: Call
    inputs: Callable[[str, int, torch.dtype], Tensors]
    by_image: tuple[str, ...]  # the arguments whose first dimension is the batch
    maps: dict[str, int]
    shapes: tuple[str, ...]


STAGES = tuple(f"medmamba_t_stage{i}" for i in (1, 2, 3, 4))
OPERATORS = {
    "selective_scan": Operator(
        selective_scan,
        scan_inputs,
        ("u", "delta", "B", "C", "z"),
        {FORWARD: 3, BOTH: 8},  # u, delta and y; then u, delta, dy, du and ddelta
        (*STAGES, "mammo_4view_64", "vmamba_t_stage1", "vim_tiny"),
    ),
    "norm_gate": Operator(
        mtlkit.ops.norm_gate,
        norm_inputs,
        ("x", "z"),
        MAPS["norm_gate"],
        (*STAGES, "mammo_4view_128"),
    ),
    "dwconv_silu": Operator(
        mtlkit.ops.dwconv_silu,
        conv_inputs,
        ("x",),
        MAPS["dwconv_silu"],
        (*STAGES, "mammo_4view_128"),
    ),
}

# --- implementations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OperatorProvider:
    """One implementation; `calls` has no key for operators that it lacks."""

    name: str
    label: str
    calls: dict[str, Call]
    why_absent: Callable[[str], str | None] = lambda op: None
    context: Callable[[], AbstractContextManager] = nullcontext
    own: bool = False  # whether it is one of mtlkit's, which must meet the policy of mtlkit.testing


EAGER = {"norm_gate": eager_norm_gate, "dwconv_silu": dwconv_silu_torch}
OPERATOR_PROVIDERS = (
    *(
        OperatorProvider(
            f"mtlkit-{backend}",
            f"mtlkit, {label}",
            {name: operator.call for name, operator in OPERATORS.items()},
            functools.partial(why_no_backend, backend),
            functools.partial(mtlkit.use_backend, backend),
            own=True,
        )
        for backend, label in (("cuda", "CUDA"), ("triton", "Triton"))
    ),
    OperatorProvider(
        "mamba-ssm",
        "mamba-ssm",
        {"selective_scan": mamba_ssm_scan},
        lambda op: missing("mamba_ssm.ops.selective_scan_interface", "mamba-ssm; it needs nvcc")(),
    ),
    OperatorProvider("eager", "eager PyTorch", EAGER),
    OperatorProvider(
        "torch-compile",
        "torch.compile",
        {name: lambda *tensors, call=call: compiled(call)(*tensors) for name, call in EAGER.items()},
    ),
)

# --- a row ------------------------------------------------------------------------------------------------------------


class OperatorCase(NamedTuple):
    """A benchmark row."""

    op: str
    shape_name: str
    batch: int
    dtype: torch.dtype
    direction: str
    provider: OperatorProvider

    def __str__(self) -> str:
        return f"{self.group}-{self.provider.name}"

    @property
    def group(self) -> str:
        return group_of(self)

    @property
    def checked(self) -> list[int]:
        """The images whose results are compared with exact ones."""
        return checked_images(self.batch)

    @property
    def bytes(self) -> int:
        """The least bytes to read and write: maps; for a scan also B and C, and for backward their gradients."""
        maps = OPERATORS[self.op].maps[self.direction]
        if self.op != "selective_scan":
            s = SS2D_SHAPES[self.shape_name]
            return self.dtype.itemsize * maps * self.batch * s.D * s.H * s.W
        s = scan_shape(self.shape_name, self.batch)
        if self.shape_name == "vim_tiny":  # z; then z and dz
            maps += 1 if self.direction == FORWARD else 3
        rows = 2 * s.G * s.N * (1 if self.direction == FORWARD else 3)
        return self.dtype.itemsize * s.B * s.L * (maps * s.D + rows)

    @property
    def unit(self) -> tuple[str, int]:
        if self.op == "selective_scan":
            return "updates", scan_shape(self.shape_name, self.batch).updates
        return "bytes", self.bytes

    def floor(self, limits: Limits) -> Floor:
        if self.op == "selective_scan":
            s = scan_shape(self.shape_name, self.batch)
            return scan_floor(s.updates, s.N, self.bytes, self.direction != FORWARD, limits)
        return memory_floor(self.bytes, limits)

    def problem(self) -> Problem:
        """Arguments and the output's gradient, on the GPU."""
        few, dy_few = given(self.op, self.shape_name, len(self.checked), self.dtype)
        tensors = spread(few, OPERATORS[self.op].by_image, self.batch, self.checked)
        if self.op == "dwconv_silu":
            tensors["x"] = tensors["x"].contiguous(memory_format=torch.channels_last)
        dy = torch.zeros_like(next(iter(tensors.values())))
        dy[self.checked] = dy_few.to(dy.device)
        return {name: t.requires_grad_() for name, t in tensors.items()}, dy

    def run(self, given: Problem) -> Tensors:
        """The output and, for the direction `forward_backward`, every gradient, by name."""
        return called(self.op, self.provider.calls[self.op], given, self.direction)

    def another(self, given: Problem) -> Problem:
        return other_maps(given, self._maps(given))

    def nbytes(self, given: Problem) -> int:
        return given[1].nbytes + sum(given[0][name].nbytes for name in self._maps(given))

    def _maps(self, given: Problem) -> tuple[str, ...]:
        return tuple(name for name in OPERATORS[self.op].by_image if name in given[0])

    def check(self, results: Tensors) -> tuple[float, float]:
        """Checks the results; returns the largest error relative to a norm, and the output's largest absolute error."""
        key = (self.op, self.shape_name, len(self.checked), self.dtype)
        plain = plain_results(*key) if self.provider.own else {}
        by_image = OPERATORS[self.op].by_image
        return compare(results, exact_results(*key), plain, by_image, self.checked, self.dtype, self.provider.own)


def called(op: str, call: Call, given: Problem, direction: str) -> Tensors:
    """A call that passes the arguments of `selective_scan` by name, and those of other operators by position."""
    tensors, dy = given
    if op == "selective_scan":
        return run(lambda *values: call(**dict(zip(tensors, values, strict=True))), tensors, dy, direction)
    return run(call, tensors, dy, direction)


@functools.lru_cache(maxsize=2)
def given(op: str, shape_name: str, images: int, dtype: torch.dtype) -> Problem:
    """Arguments and the output's gradient, on the CPU."""
    tensors = OPERATORS[op].inputs(shape_name, images, dtype)
    first = next(iter(tensors.values()))
    return tensors, torch.randn(first.shape, generator=torch.Generator().manual_seed(1)).to(dtype)


@functools.lru_cache(maxsize=2)
def exact_results(op: str, shape_name: str, images: int, dtype: torch.dtype) -> Tensors:
    """Float64 results on the CPU: of the reference if that takes seconds, else of PyTorch code tested against it."""
    tensors, dy = given(op, shape_name, images, dtype)
    doubles = {name: t.double().requires_grad_() for name, t in tensors.items()}
    long = op == "selective_scan" and images * tensors["u"].shape[2] > REFERENCE_PIXELS
    with mtlkit.use_backend("torch" if long else "reference"):
        return called(op, OPERATORS[op].call, (doubles, dy.double()), BOTH)


@functools.lru_cache(maxsize=2)
def plain_results(op: str, shape_name: str, images: int, dtype: torch.dtype) -> Tensors:
    """Results of plain PyTorch on the same 16-bit numbers, as the policy needs them; nothing for float32."""
    if dtype == torch.float32:
        return {}
    tensors, dy = given(op, shape_name, images, dtype)
    with mtlkit.use_backend("torch"):
        leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
        return called(op, OPERATORS[op].call, (leaves, dy), BOTH)


def cases(op: str) -> list[OperatorCase]:
    """All rows of operators whose provider is installed; rows with the same exact results are adjacent."""
    if not torch.cuda.is_available():
        return []
    present = [p for p in OPERATOR_PROVIDERS if op in p.calls and not p.why_absent(op)]
    return [
        OperatorCase(op, shape_name, batch, dtype, direction, provider)
        for shape_name in OPERATORS[op].shapes
        for dtype in DTYPES
        for batch in BATCHES
        for direction in (FORWARD, BOTH)
        for provider in present
    ]
