"""Training memory of an SS2D on a GPU, computed without a GPU: `python benchmarks/gpu_memory.py`.

The code that would run on a GPU gets tensors without memory, plans for an H200 and launches nothing; this module adds
up torch's allocations. The command prints the table of docs/gpu_kernels.md; tests/cuda_on_host/test_memory.py checks
this table and the bound on mtlkit's memory. The result corresponds to gpu.peak_bytes: everything that is alive at the
peak except the inputs and the output's gradient, including results.
"""

import dataclasses
import re
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from gpu_providers import medmamba_scan, mtlkit_scan
from gpu_workloads import run
from providers import BOTH
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mtlkit
from mtlkit import _native
from mtlkit.operators import _backends, _launch
from mtlkit.operators.floors import GPUS
from mtlkit.testing import SS2D_SHAPES, SS2DShape

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu_kernels.md"
TABLE = r"\| shape \| batch \| mtlkit float32.*\n(?:\|.*\n)+"
H200 = GPUS["h200"][:2]  # multiprocessors, and bytes of shared memory available to a block
DTYPES = (torch.float32, torch.bfloat16)
BLOCK = 512  # bytes; torch's allocator on a GPU rounds sizes up to multiples of this
ROWS = {
    ("56² × 96", 1): "medmamba_t_stage1",
    ("56² × 96", 32): "medmamba_t_stage1",
    ("28² × 192", 32): "medmamba_t_stage2",
    ("14² × 384", 1): "medmamba_t_stage3",
    ("14² × 384", 32): "medmamba_t_stage3",
    ("7² × 768", 1): "medmamba_t_stage4",
    ("7² × 768", 32): "medmamba_t_stage4",
    ("128² × 96", 8): "mammo_4view_128",
    ("64² × 192", 8): "mammo_4view_64",
}


def in_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


class Allocations(TorchDispatchMode):
    """Adds up the storages that operators allocate, while they live.

    Where a tensor is used twice, autograd adds the second gradient to the first in place if nothing else refers to the
    first, but never under a mode such as this one. A sum that autograd makes therefore counts from the next operator
    on: by then the first gradient is freed, unless something else refers to it, and the sum takes its place.
    """

    def __init__(self, given: list[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes = {id(t.untyped_storage()): 0 for t in given}
        self.sums: list[int] = []  # bytes of gradient sums that do not count yet

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count_sums()
        results = operator(*args, **(kwargs or {}))
        of_autograd = operator is torch.ops.aten.add.Tensor and torch._C._current_graph_task_id() >= 0
        for t in tree_leaves(results):
            if isinstance(t, Tensor):
                self._add(t.untyped_storage(), of_autograd)
        return results

    def count_sums(self) -> None:
        self.now += sum(self.sums)
        self.sums.clear()
        self.peak = max(self.peak, self.now)

    def _add(self, storage: torch.UntypedStorage, of_autograd: bool) -> None:
        key = id(storage)
        if key in self.sizes:
            return
        self.sizes[key] = in_blocks(storage.nbytes())
        self.sums.append(self.sizes[key])
        if not of_autograd:
            self.count_sums()
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


class _MambaScan(torch.autograd.Function):
    """Allocates and saves what mamba-ssm's selective_scan_fn does (variable B and C, no gate), without computing."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias):
        chunks = -(-u.shape[-1] // 2048)
        states = u.new_empty(*u.shape[:2], chunks, 2 * A.shape[1], dtype=torch.float32)
        u, delta, B, C = (t if t.stride(-1) == 1 else t.contiguous() for t in (u, delta, B, C))
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, states)
        return torch.empty_like(delta)

    @staticmethod
    def backward(ctx, dout):
        u, delta, A, B, C, D, delta_bias, _ = ctx.saved_tensors
        _kept = dout if dout.stride(-1) == 1 else dout.contiguous()
        sums = [torch.zeros_like(t, dtype=torch.float32) for t in (A, B, C, D, delta_bias)]
        dA, dB, dC, dD, ddelta_bias = (s.to(t.dtype) for s, t in zip(sums, (A, B, C, D, delta_bias), strict=True))
        return torch.empty_like(u), torch.empty_like(delta), dA, dB, dC, dD, ddelta_bias


def _mamba_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> Tensor:
    return _MambaScan.apply(u, delta, A, B, C, D, delta_bias)


@contextmanager
def _imported(name: str, module: SimpleNamespace) -> Iterator[None]:
    """Makes `import name` return a stand-in."""
    before = sys.modules.pop(name, None)
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


@contextmanager
def _stand_ins(native: ModuleType | SimpleNamespace) -> Iterator[None]:
    """Replaces CUDA kernels (planned for an H200, not launched) and mamba-ssm's scan, for tensors without memory."""
    silent = dict.fromkeys(("cuda_ss2d_forward", "cuda_ss2d_backward"), lambda **arguments: 0)
    mamba = SimpleNamespace(selective_scan_fn=_mamba_scan)
    with (
        mock.patch.object(_native, "C", SimpleNamespace(**vars(native) | silent | {"cuda": True})),
        mock.patch.object(_backends, "_cuda_obstacle", return_value=None),
        mock.patch.object(_launch, "gpu", return_value=H200),
        mtlkit.use_backend("cuda"),
        ExitStack() as modules,
    ):
        for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
            modules.enter_context(_imported(name, mamba))
        yield


def peak_bytes(
    scan: Callable[..., Tensor], shape: SS2DShape, dtype: torch.dtype, memory_format: torch.memory_format
) -> int:
    """Peak bytes of a forward and a backward pass; call this within `_stand_ins`."""
    s, options = shape, {"device": "meta"}
    tensors: dict[str, Any] = {
        "u": torch.empty(s.B, s.D, s.H, s.W, dtype=dtype, memory_format=memory_format, **options),
        "x_proj_weight": torch.empty(4, s.R + 2 * s.N, s.D, dtype=dtype, **options),
        "dt_weight": torch.empty(4, s.D, s.R, **options),
        "dt_bias": torch.empty(4, s.D, **options),
        "A_logs": torch.empty(4 * s.D, s.N, **options),
        "Ds": torch.empty(4 * s.D, **options),
    }
    dy = torch.empty_like(tensors["u"])
    with Allocations([*(t.requires_grad_() for t in tensors.values()), dy]) as allocations:
        run(scan, tensors, dy, BOTH)
        allocations.count_sums()
    return allocations.peak


def least_bytes(shape: SS2DShape, dtype: torch.dtype) -> int:
    """A lower bound for every operator: the memory that is alive when the projection's backward pass ends.

    It consists of the output, the gradients of all inputs, the gradient of the projections, and the part of u's
    gradient that comes from the projections.
    """
    s = shape
    u, row, elements = s.B * s.D * s.H * s.W, s.R + 2 * s.N, dtype.itemsize
    parameters = (4 * s.D * s.R, 4 * s.D, 4 * s.D * s.N, 4 * s.D)  # parameters of ss2d, in float32
    own = [u * elements] * 3 + [s.B * s.H * s.W * 4 * row * elements, 4 * row * s.D * elements]
    return sum(map(in_blocks, [*own, *(4 * count for count in parameters)]))


class Peak(NamedTuple):
    mtlkit: int
    medmamba: int
    least: int

    @property
    def ratio(self) -> float:
        return self.mtlkit / self.medmamba


def peaks(native: ModuleType | SimpleNamespace) -> dict[tuple[str, int], list[Peak]]:
    """Peak bytes for each dtype, by shape and batch, with the plans of a module that has the CUDA kernels."""
    with _stand_ins(native):
        return {
            row: [
                Peak(
                    peak_bytes(mtlkit_scan, shape, dtype, torch.channels_last),
                    peak_bytes(medmamba_scan, shape, dtype, torch.contiguous_format),
                    least_bytes(shape, dtype),
                )
                for dtype in DTYPES
            ]
            for row, name in ROWS.items()
            for shape in [dataclasses.replace(SS2D_SHAPES[name], B=row[1])]
        }


def table(found: dict[tuple[str, int], list[Peak]]) -> str:
    """The table of docs/gpu_kernels.md, in MiB."""

    def mebibytes(count: int) -> str:
        return f"{count / 2**20:.{1 if count < 100 * 2**20 else 0}f}"

    lines = [
        "| shape | batch | mtlkit float32 | MedMamba | ratio | least | mtlkit bfloat16 | MedMamba | ratio | least |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (shape, batch), row in found.items():
        cells = [
            cell
            for p in row
            for cell in (
                mebibytes(p.mtlkit),
                mebibytes(p.medmamba),
                f"{p.ratio:.2f}",
                f"{p.least / p.medmamba:.2f}",
            )
        ]
        lines.append(f"| {' | '.join([shape, str(batch), *cells])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    if _native.C is None or not _native.C.cuda:
        sys.exit(
            "gpu_memory: mtlkit is built without CUDA kernels, whose plans are needed: install with MTLKIT_CUDA=on"
        )
    text = table(peaks(_native.C))
    page, count = re.subn(TABLE, lambda _: text, PAGE.read_text())
    if count != 1:
        sys.exit(f"gpu_memory: {PAGE} has no table of memory to replace")
    PAGE.write_text(page)
    print(text, end="")


if __name__ == "__main__":
    main()
