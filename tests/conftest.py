"""What all tests share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mtlkit
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


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the sources."""
    return ROOT


@pytest.fixture(scope="session")
def run_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a fresh Python away from the sources: run_python("-c", "...", path=[folder to import from first])."""
    folder = tmp_path_factory.mktemp("elsewhere")

    def run(*arguments: str, path: list[Path] = (), **variables: str) -> subprocess.CompletedProcess:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MTLKIT_", "PYTHON"))}
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, path))} | variables
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    return run
