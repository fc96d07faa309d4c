"""Fixtures and settings shared by all tests."""

import functools
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

# Parallel test processes share the cores; OpenMP reads this variable when torch is loaded.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

os.environ["MTLKIT_SELF_CHECK"] = "off"  # the tests check the kernels; tests of the self-check enable it

import torch

import mtlkit
from harness import processes
from harness.poison import poison
from mtlkit import _native

ROOT = Path(__file__).resolve().parents[1]


def pytest_report_header() -> str:
    native = f"mtlkit._C for {_native.C.cpu_isa()}" if _native.C else _native.why_not
    return f"mtlkit {mtlkit.__version__}, torch {torch.__version__}, {native}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    """The device on which the kernels under test run."""
    return torch.device("cpu")


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills uninitialised memory with NaN."""
    poison(monkeypatch)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """A setter of the thread count; the old count is restored at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def draw_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a small data set, drawn once: draw_phantoms("ultrasound", 24). Do not change it."""

    @functools.cache
    def draw(kind: str, cases: int, seed: int = 0) -> Path:
        from mtlkit.data import synthesize_mammography, synthesize_ultrasound

        name, write = {"ultrasound": ("busi", synthesize_ultrasound), "mammography": ("cmmd", synthesize_mammography)}[
            kind
        ]
        folder = tmp_path_factory.mktemp(kind) / name
        write(folder, cases=cases, size=64, seed=seed)
        return folder

    return draw


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the source tree."""
    return ROOT


@pytest.fixture(scope="session")
def run_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a fresh Python outside the source tree: run_python("-c", "...", MTLKIT_BACKEND="torch")."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(*arguments: object, path: Sequence[Path] = (), copy: Path | None = None, **variables: str):
        return processes.run_python(arguments, elsewhere, path=path, copy=copy, variables=variables)

    return run


@pytest.fixture
def two_processes(tmp_path: Path) -> Callable[[str, object], list]:
    """What a function returns in two processes: two_processes("def work(rank, given): ...", given); see the harness."""
    return lambda code, given: processes.two_processes(code, given, tmp_path)
