"""What all tests share."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
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


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills whatever is allocated unset with NaN, so that an element that a kernel forgets shows."""

    def poison(allocate):
        def poisoned_allocate(*args, **options):
            tensor = allocate(*args, **options)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return poisoned_allocate

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))


@pytest.fixture(scope="session")
def draw_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a small data set, drawn once: draw_phantoms("ultrasound", 24). It is to be left as it is."""

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
    """The folder of the sources."""
    return ROOT


# Takes an editable install of mtlkit out of a process that is to see another copy: its finder serves mtlkit._C from the
# sources even to that copy.
WITHOUT_EDITABLE = "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"


@pytest.fixture(scope="session")
def run_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess]:
    """Runs a fresh Python away from the sources, as run_python("-c", "...", MTLKIT_BACKEND="torch").

    `path` lists folders to import from first; `copy` is one that holds a copy of mtlkit, to be used in place of the
    installed one.
    """
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    without_editable = tmp_path_factory.mktemp("without_editable")
    (without_editable / "sitecustomize.py").write_text(WITHOUT_EDITABLE)

    def run(*arguments: str, path: Sequence[Path] = (), copy: Path | None = None, **variables: str):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("MTLKIT_", "PYTHON"))}
        folders = [*path, *([copy, without_editable] if copy else [])]
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, folders))} | variables
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)

    return run


# Runs `work(rank, given)` of the code before it in two processes that torch.distributed joins.
TWO_PROCESSES = """

def process(rank, folder):
    import torch
    from torch import distributed
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = work(rank, torch.load(f"{folder}/given.pt", weights_only=False))
    torch.save(found, f"{folder}/found-{rank}.pt")
    distributed.destroy_process_group()

if __name__ == "__main__":
    import sys
    from torch import multiprocessing
    multiprocessing.start_processes(process, sys.argv[1:], nprocs=2, start_method="fork")
"""


@pytest.fixture
def two_processes(tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess]) -> Callable[..., list]:
    """What a function returns in two processes: of `work(rank, given)`, defined in code, given what torch can save."""

    def run(code: str, given: object) -> list:
        torch.save(given, tmp_path / "given.pt")
        (tmp_path / "script.py").write_text(code + TWO_PROCESSES)
        process = run_python(tmp_path / "script.py", str(tmp_path))
        assert process.returncode == 0, process.stderr
        return [torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2)]

    return run
