"""Measurements on a GPU: its physical limits, the duration of calls, and their peak memory."""

import functools
import math
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from mtlkit.operators.floors import EXPONENTIALS, LANES, Limits

SECONDS, FEWEST, MOST = 0.5, 10, 200  # of the rounds of a row: total time, least and largest number
WARM_UPS = 3


def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def name() -> str:
    return torch.cuda.get_device_name(device())


def stem() -> str:
    """The GPU's name as a file name: NVIDIA H200 becomes h200."""
    return re.sub(r"[^a-z0-9]+", "_", name().lower().removeprefix("nvidia ")).strip("_")


@functools.cache
def clock() -> float:
    """The highest clock of the multiprocessors, in Hz, as the driver reports it."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits", f"--id={device().index}"]
    return 1e6 * float(subprocess.run(query, capture_output=True, text=True, check=True).stdout)


@functools.cache
def limits() -> Limits:
    """The limits of this GPU; its memory bandwidth is measured by a copy of 1 GiB."""
    cycles = clock() * torch.cuda.get_device_properties(device()).multi_processor_count
    source = torch.zeros(1 << 28, device=device())
    target = torch.empty_like(source)
    seconds = statistics.median(durations([lambda: target.copy_(source)]))
    return Limits(EXPONENTIALS * cycles, LANES * cycles, 2 * source.nbytes / seconds)


# --- measuring --------------------------------------------------------------------------------------------------------


def copies(nbytes: int) -> int:
    """How many tensors of this size fill twice the GPU's L2 cache, so that none is cached when it is used again."""
    return max(2, math.ceil(2 * torch.cuda.get_device_properties(device()).L2_cache_size / nbytes))


def durations(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Seconds of calls made in turn, between events on the GPU; launch overhead counts unless it is hidden.

    The calls do the same work on different tensors: see `copies`.
    """
    for i in range(WARM_UPS):
        calls[i % len(calls)]()
    torch.cuda.synchronize()
    start = time.perf_counter()
    calls[0]()
    torch.cuda.synchronize()
    rounds = min(MOST, max(FEWEST, math.ceil(SECONDS / (time.perf_counter() - start))))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for i, (first, last) in enumerate(events):
        first.record()
        calls[i % len(calls)]()
        last.record()
    torch.cuda.synchronize()
    return [first.elapsed_time(last) / 1e3 for first, last in events]


def peak_bytes(call: Callable[[], object]) -> int:
    """Peak memory of a call beyond what was allocated before, including its results."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del kept
    return peak


def measured(case: Any) -> tuple[tuple[float, float], list[float], int]:
    """Errors, seconds of each round, and peak bytes of a call.

    A case has `problem()`, which makes the arguments of `run`; `run`, which returns results by name; `check` of these,
    which raises or returns the errors; and, so that calls do not find their data in caches, `another` problem with
    other tensors and its size `nbytes`.
    """
    given = case.problem()
    case.run(given)  # compiles on the first call
    peak = peak_bytes(lambda: case.run(given))
    errors = case.check(case.run(given))
    others = [case.another(given) for _ in range(copies(case.nbytes(given)))]
    return errors, durations([lambda other=other: case.run(other) for other in others]), peak
