"""The machine and the software that the figures belong to, and its yardstick: the rate no scan can pass here."""

import os
import platform
import statistics
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path

import torch

import mtlkit
from mtlkit import _native
from mtlkit.info import cpu_name, version_of

ROOT = Path(__file__).resolve().parents[1]
THREADS = torch.get_num_threads()  # of the run: a benchmark on one thread keeps the yardstick on as many as before


def yardstick(runs: int = 9, seconds: float = 0.05, *, polynomial: bool = False) -> float | None:
    """State updates a second on operands in registers and cache, on all threads of the run: the median of the runs.

    With `polynomial` the exponential is the polynomial that serves any decay: the limit that results from before
    November 2026 refer to.
    """
    if _native.C is None:
        return None

    def run(tokens: int) -> tuple[float, float]:
        start = time.perf_counter()
        updates = _native.C.peak_rate(tokens, THREADS, polynomial)
        elapsed = time.perf_counter() - start
        return updates / elapsed, elapsed

    tokens = 50_000
    tokens = max(1, round(tokens * seconds / min(run(tokens)[1] for _ in range(3))))
    return statistics.median(run(tokens)[0] for _ in range(runs))


def git(*arguments: str) -> str | None:
    answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None


def commit() -> str | None:
    """The commit, with a mark where files that are compiled or imported differ from it."""
    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "mtlkit", "benchmarks/*.py")
    except FileNotFoundError:  # no git here
        return None
    return f"{revision} with changes" if revision and changed else revision


def description() -> dict[str, object]:
    """What one needs to know to read the figures, or to repeat them."""
    native = _native.C
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {name: version_of(name) for name in ("torch", "numpy", "mambapy", "mamba-ssm", "pytest-benchmark")}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "cpu": cpu_name(),
            "architecture": platform.machine(),
            "system": f"{platform.system()} {platform.release()}",
            "cores": cores,
            "threads": THREADS,
            "isa": native.cpu_isa() if native else None,
            "isa_levels": native.cpu_isa_levels() if native else [],
        },
        "versions": {
            "mtlkit": mtlkit.__version__,
            "python": platform.python_version(),
            "compiler": native.compiler if native else None,
            **versions,
        },
    }
