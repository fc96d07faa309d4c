"""Correctness first, then time: what all benchmarks share, and the report that a run ends with.

`pytest benchmarks --benchmark-only` runs everything and writes benchmarks/results/cpu.json and cpu.png. A run of a part
(`-k ss2d`) or with failures prints its figures and leaves those files as they are. `pytest benchmarks -m gpu` runs the
benchmarks on a GPU instead, and writes <gpu>.json and <gpu>.png.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu
import gpu_report
import machine
import pytest
import report
import torch
from run_results import Results

HERE = Path(__file__).resolve().parent

SECONDS_A_ROW = 0.5
MOST_ROUNDS = 300
SLOW = 2.0  # seconds of a call that is timed once

RESULTS = pytest.StashKey[Results]()
GPU_ROWS = pytest.StashKey[list[dict[str, Any]]]()
DESELECTED = pytest.StashKey[int]()


def seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Measure:
    """Checks one call and times it; each use makes one row of the results."""

    def __init__(self, benchmark, results: Results, record_property) -> None:
        self._benchmark = benchmark
        self._results = results
        self._record = record_property

    def __call__(
        self,
        call: Callable[[], Any],
        check: Callable[[Any], tuple[float, float | None]],
        *,
        group: str,
        provider: str,
        unit: tuple[str, float],
        iterations: int = 1,
        **extra: Any,
    ) -> dict[str, Any]:
        """Times `call` after `check` has passed its result.

        Args:
            call: what is timed.
            check: raises where the result is wrong; returns its relative and its largest absolute error.
            group: the rows that this one is compared with.
            provider: who does it.
            unit: what a call does, and how many of them: ("updates", 19e6) or ("images", 1).
            iterations: calls a round, of which the mean counts; more than 1 for calls of microseconds.
            **extra: further columns.
        """
        benchmark = self._benchmark
        relative, absolute = check(call())
        elapsed = seconds_of(call)  # the first call compiled or warmed up
        if elapsed < SLOW:
            elapsed = min(elapsed, seconds_of(call))
        rounds = math.ceil(SECONDS_A_ROW / (elapsed * iterations))
        rounds = min(MOST_ROUNDS, max(rounds, 1 if elapsed > SLOW else 3))
        before = machine.yardstick(3, 0.01)
        benchmark.group = group
        benchmark.pedantic(call, rounds=rounds, iterations=iterations)
        if benchmark.stats is None:  # --benchmark-disable
            return {}
        speeds = [speed for speed in (before, machine.yardstick(3, 0.01)) if speed]
        self._results.yardsticks += speeds
        stats = benchmark.stats.stats
        what, count = unit
        row = {
            "group": group,
            "provider": provider,
            "median_s": stats.median,
            "min_s": stats.min,
            "max_s": stats.max,
            "rounds": stats.rounds,
            f"{what}_per_s": count / stats.median,
            "relative_error": relative,
            **({} if absolute is None else {"max_abs_error": absolute}),
            **({"yardsticks_updates_per_s": speeds} if speeds else {}),
            **extra,
        }
        self._results.add(row)
        benchmark.extra_info.update(row)
        self._results.on_yardstick(benchmark.extra_info)
        self._record("figures", report.one_line(row))
        return row


@pytest.fixture
def measure(benchmark, request: pytest.FixtureRequest, _yardstick: None, record_property) -> Measure:
    """measure(call, check, group=..., provider=..., unit=...): one row."""
    return Measure(benchmark, request.config.stash[RESULTS], record_property)


@pytest.fixture
def measure_case(measure: Measure):
    """Runs a case of workloads.py: asserts its results, then times it."""
    from memory import peak_memory
    from providers import BOTH, MEDMAMBA_56
    from workloads import MAPS, dtype_name, floor_of

    def run(case) -> None:
        w = case.workload
        extra = {
            "op": w.op,
            "shape": w.shape_name,
            "dtype": dtype_name(w.dtype),
            "direction": w.direction,
        }
        measured = w.op in ("ss2d", "ss2d_layer") and case.provider.name in ("mtlkit", "torch")
        if measured and w.shape_name == MEDMAMBA_56 and w.direction == BOTH and w.dtype == torch.float32:
            peak = peak_memory(w.op, w.shape_name, w.direction, case.provider.name)
            extra |= {} if peak is None else {"peak_bytes": peak}
        with case.provider.context():
            problem = case.problem()
            extra |= floor_of(case, problem) if w.op in MAPS else {}
            measure(
                lambda: problem.run(w.direction),
                case.check,
                group=case.group,
                provider=case.provider.name,
                unit=case.unit,
                **extra,
            )

    return run


@pytest.fixture
def measure_gpu(request: pytest.FixtureRequest, record_property) -> Callable[[Any], None]:
    """measure_gpu(case): one row of a run on a GPU.

    Times are medians between CUDA events, each call on other tensors than those that the GPU's caches hold.
    """

    def run(case: Any) -> None:
        with case.provider.context():
            try:
                row = gpu_report.row(case, *gpu.measured(case))
            except torch.cuda.OutOfMemoryError:
                pytest.skip(f"{case.provider.label} takes more memory than this GPU has")
            finally:
                torch.cuda.empty_cache()
        request.config.stash[GPU_ROWS].append(row)
        record_property("figures", gpu_report.one_line(row))

    return run


@pytest.fixture(scope="session")
def _yardstick(request: pytest.FixtureRequest):
    results = request.config.stash[RESULTS]
    results.yardsticks.append(machine.yardstick())
    yield
    results.yardsticks.append(machine.yardstick())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- the run and its end ----------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS], config.stash[GPU_ROWS] = Results(), []
    config.stash[DESELECTED] = 0
    if config.option.verbose == 0:
        config.option.verbose = 1  # a line a row: a run takes minutes
    config.option.benchmark_quiet = True  # report.py draws one table instead of one for every group
    config.option.benchmark_warmup = False


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Either the benchmarks on a GPU or the others: `-m gpu` is asked for or not."""
    name = collection_path.name
    if name.startswith("test_bench_") and name.startswith("test_bench_gpu_") != (config.option.markexpr == "gpu"):
        return True
    return None


def pytest_report_header() -> str:
    return report.headline_of(machine.description())


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        items[0].config.stash[DESELECTED] += len(items)


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    figures = dict(report.user_properties).get("figures")
    return ("passed", ".", figures) if report.when == "call" and report.passed and figures else None


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["mtlkit"] = machine.description() | {"yardstick": config.stash[RESULTS].yardsticks}


def pytest_terminal_summary(terminalreporter, exitstatus: int, config: pytest.Config) -> None:
    results = config.stash[RESULTS]
    whole = exitstatus == 0 and config.stash[DESELECTED] == 0
    if config.stash[GPU_ROWS]:
        folder = HERE / "results" if whole else None
        text = gpu_report.finish(config.stash[GPU_ROWS], machine.description(), folder, terminalreporter.hasmarkup)
        terminalreporter.ensure_newline()
        terminalreporter.write(text)
    if not results.rows:
        return
    text = report.finish(
        results,
        machine.description() | {"polynomial_limit_updates_per_s": machine.yardstick(polynomial=True)},
        HERE / "results" if whole else None,
        colour=terminalreporter.hasmarkup,
        width=terminalreporter._tw.fullwidth,
    )
    terminalreporter.ensure_newline()
    terminalreporter.write(text)
