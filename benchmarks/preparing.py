"""Prepares what takes long before a row can be timed: ONNX files, and what torch.compile compiles.

At the start of a run, two processes prepare everything that its rows need, the longest first, each thing once. If
nothing is prepared for a row, because it runs by itself or because that process failed, the row prepares it.
"""

import functools
import multiprocessing
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
import torch.nn.functional as F
from networks import frame, given, infer, network
from providers import BY_NAME
from torch import Tensor

import mtlkit

PROCESSES = 2
SMALL = "busi_64"


class Job(Protocol):
    """Something to prepare, with a name; the result is a file in the folder, or an entry in torch.compile's cache."""

    def seconds(self) -> float:
        """The approximate duration."""
        ...

    def run(self, folder: Path) -> None: ...


# --- files of ONNX ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Export:
    """A network as a file, of kind "plain", "int8" or ""; only a plain file is limited to its example's size.

    A file in int8 is written together with that in float32, from one trace.
    """

    name: str
    shape: str
    kind: str = ""

    def seconds(self) -> float:
        return {"int8": 30, "plain": 20}.get(self.kind, 15)

    def path(self, folder: Path) -> Path:
        return folder / f"{self.name}-{self.shape}-{self.kind}.onnx"

    def run(self, folder: Path) -> None:
        example = inputs_of(self.name, self.shape)
        options: dict[str, Any] = {"plain": self.kind == "plain", "force": True}
        if self.kind == "int8":
            options |= {"int8": [example], "float32": Export(self.name, self.shape).path(folder)}
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # another process prepares something, too
        try:
            mtlkit.export(network(self.name).eval(), self.path(folder), example=example, **options)
        finally:
            torch.set_num_threads(threads)


def inputs_of(name: str, shape: str) -> tuple[Tensor, ...]:
    if shape != SMALL:
        return given(name, False)
    return (F.interpolate(frame(), (64, 64), mode="bilinear", antialias=True, align_corners=False),)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    """The folder of this run, removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="mtlkit-bench-")


def file_of(job: Export) -> Path:
    """The file, written once per run."""
    folder = Path(_folder().name)
    if not job.path(folder).exists():
        job.run(folder)
    return job.path(folder)


# --- torch.compile ----------------------------------------------------------------------------------------------------


def frozen(name: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """A network for torch.compile, channels last and with its weights as constants, and its inputs."""
    model = network(name).eval().to(memory_format=torch.channels_last)
    inputs = tuple(t.contiguous(memory_format=torch.channels_last) for t in given(name, False))
    return torch.compile(model, options={"freezing": True}), inputs


@dataclass(frozen=True)
class Frozen:
    """The compiled kernels of `frozen`."""

    name: str

    def seconds(self) -> float:
        return 60

    def run(self, _: Path) -> None:
        model, inputs = frozen(self.name)
        with mtlkit.use_backend("torch"):
            infer(model, *inputs)


@dataclass(frozen=True)
class Compiled:
    """An operator of the provider torch-compile at one shape."""

    op: str
    shape: str
    direction: str

    def seconds(self) -> float:
        return 50 if self.op == "ss2d" else 15

    def run(self, _: Path) -> None:
        from interaction_workloads import level_problem
        from workloads import problem

        make = level_problem if self.op == "task_interaction" else problem
        make(self.op, self.shape, torch.float32, BY_NAME["torch-compile"]).run(self.direction)


# --- everything that a run needs --------------------------------------------------------------------------------------


def job_of(item: pytest.Item) -> Job | None:
    """What a row needs: by its mark `prepared` (a function of its parameters), or by its case."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    mark, case = item.get_closest_marker("prepared"), parameters.get("case")
    if mark is not None:
        return mark.kwargs["by"](**parameters)
    if case is not None and case.provider.name == "torch-compile":
        return Compiled(case.workload.op, case.workload.shape_name, case.workload.direction)
    return None


def prepare(items: Iterable[pytest.Item], say: Callable[[str], None]) -> None:
    """Prepares what the rows need, unless it is a single thing, which the row itself can prepare just as fast."""
    jobs = dict.fromkeys(job for item in items if (job := job_of(item)) is not None)
    both = {Export(job.name, job.shape) for job in jobs if isinstance(job, Export) and job.kind == "int8"}
    jobs = [job for job in jobs if job not in both]
    if len(jobs) < 2:
        return
    say(f"{PROCESSES} processes export and compile {len(jobs)} networks and operators first")
    folder = Path(_folder().name)
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        wait([pool.submit(job.run, folder) for job in sorted(jobs, key=lambda job: -job.seconds())])
