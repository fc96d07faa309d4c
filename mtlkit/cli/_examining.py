"""Calls that `mtlkit doctor` examines: samples of every operator, by every backend and dtype, beside the reference.

The calls are made in a process of their own, which a wrong kernel may end: it says on standard output what it begins
and what it found, a line of JSON each, and another takes its place behind the call that ended it.
"""

import contextlib
import faulthandler
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from mtlkit import _native
from mtlkit._accuracy import Accuracy
from mtlkit.operators import obstacle
from mtlkit.operators.samples import Results, Sample, compare, samples

FAMILIES = (("float32", "float64"), ("bfloat16", "float16"))  # dtypes of the same numbers
DTYPES = tuple(name for family in FAMILIES for name in family)
PATIENCE = 300.0  # seconds that a call may take, compilation by Triton included
MOST_CRASHES = 20
LOST = 3  # the exit status of a process whose GPU takes no more calls
CODE = """\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from mtlkit import info
info.load_torch()
info.load_native()  # which tries in another process whether it crashes this one
from mtlkit.cli._examining import work
work()
"""


class Finding(NamedTuple):
    """A call and what came of it.

    Fields:
        operator: its name, as in `mtlkit.ops`.
        device: where its tensors are.
        backend: and for the CPU's kernels the instruction set, as in "cpu avx2".
        dtype: of its tensors.
        words: its sizes and settings.
        result: the output or gradient that is furthest from the exact one, as a share of the bound.
        error: the relative error of that one, NaN where it is not comparable.
        bound: what that may be.
        seconds: of the call, forward and backward, when made again.
        fault: what is wrong, in a sentence, if anything.
    """

    operator: str
    device: str
    backend: str
    dtype: str
    words: str
    result: str = ""
    error: float = float("nan")
    bound: float = float("nan")
    seconds: float = float("nan")
    fault: str | None = None

    @property
    def share(self) -> float:
        """The error as a share of the bound; infinite where it is not comparable."""
        share = self.error / self.bound if self.bound > 0 else self.error
        return share if share == share else float("inf")


# --- the process that makes the calls ---------------------------------------------------------------------------------


def operators() -> list[str]:
    """Names of those that can be examined."""
    return list(samples())


def devices() -> list[str]:
    """The CPU, and the GPUs that torch finds."""
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]


def backends(sample: Sample, device: str) -> list[str]:
    """Those of its operator that serve a device, the CPU's kernels once for each instruction set."""
    found = []
    for name in sample.served:
        if name == "reference" or obstacle(name, torch.device(device)) is not None:
            continue
        found += [f"cpu {level}" for level in _native.C.cpu_isa_levels()] if name == "cpu" else [name]
    return found


def planned(names: Sequence[str], most: int, chosen: Sequence[str] = ()) -> list[tuple[Finding, Sample]]:
    """The calls that a backend can serve, those of one sample side by side.

    Args:
        names: of operators.
        most: how many samples of each.
        chosen: the backends, all if none is given.
    """
    found = []
    for device in devices():
        for sample in (sample for name in names for sample in samples()[name][:most]):
            for dtype in DTYPES:
                given = {name: t.to(device) for name, t in sample.given(getattr(torch, dtype)).items()}
                for backend in backends(sample, device):
                    name = backend.split()[0]
                    if name in (chosen or [name]) and sample.limit(name, given) is None:
                        found.append((Finding(sample.operator, device, backend, dtype, sample.words), sample))
    return found


def examine(plan: Sequence[tuple[Finding, Sample]]) -> Iterator[tuple[Finding, Finding | None]]:
    """Each call before it is made, with None, and then with what came of it."""

    @functools.lru_cache(2)
    def exact(sample: Sample, family: tuple[str, str]) -> Results:
        return sample.exact(getattr(torch, family[0]))

    @functools.lru_cache(2)
    def plain(sample: Sample, dtype: str) -> Results | None:
        return sample.plain(getattr(torch, dtype))

    many = torch.get_num_threads()
    torch.set_num_threads(1)  # calls are too small for more, which would wait for each other on a busy machine
    for call, sample in plan:
        yield call, None
        family = next(family for family in FAMILIES if call.dtype in family)
        given = {name: t.to(call.device) for name, t in sample.given(getattr(torch, call.dtype)).items()}
        yield call, _examined(call, sample, given, exact(sample, family), plain(sample, call.dtype), many)


def _examined(
    call: Finding, sample: Sample, given: Results, exact: Results, plain: Results | None, threads: int
) -> Finding:
    """What comes of a call, made twice: those of the CPU's kernels in float32 on so many threads, others on one."""
    name, *level = call.backend.split()
    if level:
        _native.C.set_cpu_isa(level[0])
        torch.set_num_threads(threads if call.dtype == "float32" else 1)
    try:
        first = sample.results(name, given)
        start = time.perf_counter()
        again = sample.results(name, given)
        _wait_for(call.device)
        seconds = time.perf_counter() - start
        found = compare(first, exact, plain)
        fault = next((judged.fault for judged in found.values() if judged.fault), None)
        if fault is None and name != "torch":  # which does not promise it
            fault = _difference(first, again)
    except Exception as error:  # whatever a kernel, a compiler or a driver raises
        return call._replace(fault=f"{type(error).__name__}: {error}")
    finally:
        torch.set_num_threads(1)
    worst = max(found, key=lambda result: _share(found[result]))
    return call._replace(result=worst, error=found[worst].error, bound=found[worst].bound, seconds=seconds, fault=fault)


def _share(judged: Accuracy) -> float:
    if judged.error != judged.error:
        return float("inf")
    return judged.error / judged.bound if judged.bound > 0 else judged.error


def _difference(first: Results, again: Results) -> str | None:
    """What two calls of the same tensors differ in; kernels promise the same bits."""
    for name, t in first.items():
        if not torch.equal(t, again[name]):
            return f"{name}: other bits when computed again"
    return None


def _wait_for(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _lost(device: str) -> bool:
    """Whether the GPU takes no more calls of this process, as after an access outside of its memory."""
    try:
        _wait_for(device)
    except Exception:
        return True
    return False


def work() -> None:
    """What the process does; its orders, on standard input, are those of `planned` and how many calls to skip."""
    orders = json.load(sys.stdin)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as output:
        os.dup2(2, 1)  # what others print
        faulthandler.enable()
        plan = planned(orders["names"], orders["most"], orders["chosen"])
        output.write(f"{len(plan)}\n")
        for call, found in examine(plan[orders["skip"] :]):
            output.write(json.dumps([found is not None, *(found or call)]) + "\n")
            output.flush()
            if found is not None and found.fault and _lost(call.device):
                sys.exit(LOST)


# --- the process that listens -----------------------------------------------------------------------------------------


class _Worker:
    """The process that makes the calls, ended if it takes too long over one."""

    def __init__(self, **orders: Any) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        command = [sys.executable, "-c", CODE, json.dumps(sys.path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        self.orders, self.late = orders, False

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.errors.close()

    def lines(self) -> Iterator[Any]:
        """What it says, line by line, until its end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended at once
            self.process.stdin.write(json.dumps(self.orders).encode())
            self.process.stdin.close()
        while True:
            watch = threading.Timer(PATIENCE, self._end)
            watch.start()
            try:
                line = self.process.stdout.readline()
            finally:
                watch.cancel()
            if not line.endswith(b"\n"):
                self.process.wait()
                return
            yield json.loads(line)

    def _end(self) -> None:
        self.late = True
        self.process.kill()

    def outcome(self) -> str:
        """How it ended, in words, and what it said of it."""
        status = self.process.returncode
        if self.late:
            return f"no answer within {PATIENCE:.0f} s"
        how = f"crashes Python ({signal.Signals(-status).name})" if status < 0 else f"ends Python with status {status}"
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip().splitlines()
        return "; ".join([how, *said[-1:]]) if status > 0 else how


def examine_apart(names: Sequence[str], most: int, chosen: Sequence[str] = ()) -> Iterator[tuple[Finding, int]]:
    """What comes of each planned call, made in another process, and how many there are.

    Raises:
        OSError: the process makes no calls, or ends too often.
    """
    done = crashes = 0
    while True:
        begun: Finding | None = None
        with _Worker(names=list(names), most=most, chosen=list(chosen), skip=done) as worker:
            lines = worker.lines()
            count = next(lines, 0)
            for ended, *fields in lines:
                found = Finding(*fields)
                begun = None if ended else found
                if ended:
                    done += 1
                    yield found, count
            status, outcome = worker.process.returncode, worker.outcome()
        if begun is not None:
            done += 1
            crashes += 1
            yield begun._replace(fault=outcome), count
        elif status == 0:
            return
        elif status != LOST:
            raise OSError(f"the process that makes the calls {outcome}")
        if crashes == MOST_CRASHES:
            raise OSError(f"{crashes} calls ended the process that made them, and no more were made")
