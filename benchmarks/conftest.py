"""Shared code of all benchmarks, which check results before they time them, and the report at the end of a run.

`pytest benchmarks --benchmark-only` runs everything, and writes the file of this kind of machine in benchmarks/results/
and the README's table. It only prints its results, and leaves those files unchanged, if it runs a part (`-k ss2d`, or
`--fast`: only the rows of the README's table), if a benchmark fails, or if other programs use the machine (unless
`--force`). `pytest benchmarks -m gpu` runs the benchmarks on a GPU instead, and writes <gpu>.json and <gpu>.png; with
`--results FOLDER`, even a partial run writes them, into that folder, as results arrive.

A new file `test_bench_<stem>.py` gives each test the parameter `case` (workloads.py) or a mark that names its row
(`measuring.key_of`), and calls the fixture `measure` once.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine

# set before torch is imported: later runs of this checkout reuse what torch.compile has compiled
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(machine.ROOT / ".benchmarks" / "inductor"))

import comparisons
import gpu
import gpu_report
import measuring
import preparing
import pytest
import report
import torch
from measuring import Measure, Results

RESULTS = pytest.StashKey[Results]()
GPU_ROWS = pytest.StashKey[list[dict[str, Any]]]()
DESELECTED = pytest.StashKey[int]()
LOAD = pytest.StashKey[machine.Load]()


@pytest.fixture
def measure(benchmark, request: pytest.FixtureRequest, _yardstick: None, record_property) -> Measure:
    """measure(call, check, unit=...) makes one row."""
    results = request.config.stash[RESULTS]
    return Measure(benchmark, results, request, lambda row: record_property("figures", report.one_line(row)))


@pytest.fixture
def measure_case(measure: Measure) -> Callable[[Any], None]:
    """Runs a case of workloads.py: checks its results, then times it."""
    from memory import peak_memory

    def run(case: Any) -> None:
        w, extra = case.workload, {}
        if case.tells_memory:
            peak = peak_memory(w.op, w.shape_name, w.direction, case.provider.name)
            extra |= {} if peak is None else {"peak_bytes": peak}
        with case.provider.context():
            problem = case.problem()
            measure(
                lambda: problem.run(w.direction),
                case.check,
                compiles=case.provider.name == "torch-compile",
                **case.columns(problem),
                **extra,
            )

    return run


@pytest.fixture(scope="session")
def _journal(request: pytest.FixtureRequest) -> gpu_report.Journal | None:
    folder = request.config.option.results
    return None if folder is None else gpu_report.Journal(machine.description(), folder)


@pytest.fixture
def measure_gpu(
    request: pytest.FixtureRequest, _journal: gpu_report.Journal | None, record_property
) -> Callable[[Any], None]:
    """measure_gpu(case) makes one row of a run on a GPU.

    Times are medians between CUDA events; successive calls use tensors that are not in the GPU's caches.
    """

    def run(case: Any) -> None:
        if request.config.option.missing and _journal and (case.group, case.provider.name) in _journal.earlier:
            pytest.skip("an earlier run has this row")
        with case.provider.context():
            try:
                if request.config.option.untimed:
                    case.run(case.problem())
                    return
                row = gpu_report.row(case, *gpu.measured(case))
            except torch.cuda.OutOfMemoryError:
                pytest.skip(f"{case.provider.label} takes more memory than this GPU has")
            finally:
                torch.cuda.empty_cache()
        rows = request.config.stash[GPU_ROWS]
        rows.append(row)
        if _journal is not None:
            _journal.note(rows)
        record_property("figures", gpu_report.one_line(row))

    return run


@pytest.fixture(scope="session")
def _prepared(request: pytest.FixtureRequest) -> None:
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    preparing.prepare(request.session.items, reporter.write_line)


@pytest.fixture(scope="session")
def _yardstick(request: pytest.FixtureRequest, _prepared: None):
    results = request.config.stash[RESULTS]

    def read() -> None:
        results.yardsticks.append(machine.yardstick())
        results.polynomials.append(machine.yardstick(polynomial=True))

    read()
    yield
    read()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- the run and its end ----------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mtlkit's benchmarks")
    group.addoption("--fast", action="store_true", help="measure only the rows of the README's table")
    group.addoption("--force", action="store_true", help="write results/ even if other programs use the machine")
    group.addoption("--untimed", action="store_true", help="on a GPU: only run each row once, which compiles it")
    group.addoption("--missing", action="store_true", help="on a GPU: skip rows that the folder of --results has")
    group.addoption(
        "--results", type=Path, metavar="FOLDER", help="on a GPU: add rows to <gpu>.json there, even of a partial run"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "row(key): which row a benchmark makes, a function of its parameters")
    config.addinivalue_line("markers", "prepared(by): what preparing.py makes for it, a function of its parameters")
    config.stash[RESULTS], config.stash[GPU_ROWS] = Results(), []
    config.stash[DESELECTED] = 0
    config.stash[LOAD] = machine.Load(None, "", None) if config.option.collectonly else machine.load()
    if config.option.verbose == 0:
        config.option.verbose = 1  # one line per row, because a run takes minutes
    config.option.benchmark_quiet = True  # report.py prints one table instead of one per group
    config.option.benchmark_warmup = False


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collects either the GPU benchmarks or the others, depending on `-m gpu`."""
    name = collection_path.name
    if name.startswith("test_bench_") and name.startswith("test_bench_gpu") != (config.option.markexpr == "gpu"):
        return True
    return None


def pytest_report_header(config: pytest.Config) -> list[str]:
    load = config.stash[LOAD]
    lines = [report.headline_of(machine.description()), f"other programs use {load.in_words()}"]
    if load.busy and not config.option.force:
        lines.append(f"busier than {machine.BUSY} cores: this run writes no results (--force overrides)")
    return lines


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.option.fast:
        return
    wanted = comparisons.readme_keys()
    rest = [item for item in items if measuring.key_of(item) not in wanted]
    items[:] = [item for item in items if measuring.key_of(item) in wanted]
    config.hook.pytest_deselected(items=rest)


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        items[0].config.stash[DESELECTED] += len(items)


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    figures = dict(report.user_properties).get("figures")
    return ("passed", ".", figures) if report.when == "call" and report.passed and figures else None


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["mtlkit"] = machine.description() | {"yardstick": config.stash[RESULTS].yardsticks}


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Replaces pytest-benchmark's values, which come from a single round, by each row's own."""
    for entry in output_json["benchmarks"]:
        row = entry["extra_info"]
        names = {"median": "median_s", "min": "min_s", "max": "max_s", "rounds": "rounds"}
        if "median_s" in row:
            entry["stats"] = {name: row[ours] for name, ours in names.items()}


def why_kept(config: pytest.Config, exitstatus: int) -> str | None:
    """The reason why the files in results/ stay unchanged, if there is one."""
    load = config.stash[LOAD]
    whole = [config.invocation_params.dir / argument for argument in config.args] == [Path(__file__).parent]
    if exitstatus != 0 or config.stash[DESELECTED] or not whole:
        return "not every benchmark ran and passed"
    if load.busy and not config.option.force:
        return f"other programs used {load.in_words()} before the run, more than {machine.BUSY} (--force overrides)"
    return None


def pytest_terminal_summary(terminalreporter, exitstatus: int, config: pytest.Config) -> None:
    results, why = config.stash[RESULTS], why_kept(config, exitstatus)
    if config.stash[GPU_ROWS]:
        folder = config.option.results or (report.readme.RESULTS if why is None else None)
        rows, whole = config.stash[GPU_ROWS], config.option.results is None
        text = gpu_report.finish(rows, machine.description(), folder, whole, terminalreporter.hasmarkup)
        terminalreporter.ensure_newline()
        terminalreporter.write(text)
    if not results.rows:
        return
    load = {"before": config.stash[LOAD].in_words(), "after": machine.load().in_words()}
    text = report.finish(
        results,
        report.document_of(results, machine.description(), load),
        why,
        colour=terminalreporter.hasmarkup,
        width=terminalreporter._tw.fullwidth,
    )
    terminalreporter.ensure_newline()
    terminalreporter.write(text)
