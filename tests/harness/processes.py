"""Fresh Python processes: one, or two joined by torch.distributed."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
PATH = (ROOT / "tests", ROOT / "examples")  # import path of processes that use the harness

# Removes an editable install of mtlkit from a process that must import another copy: its finder would provide mtlkit._C
# from the sources even to that copy.
WITHOUT_EDITABLE = "import sys\nsys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"

# Runs `work(rank, given)` from the preceding code in two processes joined by torch.distributed.
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


def run_python(
    arguments: Sequence[object],
    folder: Path,
    *,
    path: Sequence[Path] = (),
    copy: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess:
    """Runs a fresh Python in a folder, without this process's MTLKIT_* and PYTHON* variables.

    Args:
        arguments: for the command line.
        folder: the working directory.
        path: folders to import from first.
        copy: a folder with a copy of mtlkit to use instead of the installed one.
        variables: additional environment variables.
    """
    folders = [*path]
    if copy:
        without_editable = folder / "without_editable"
        without_editable.mkdir(exist_ok=True)
        (without_editable / "sitecustomize.py").write_text(WITHOUT_EDITABLE)
        folders += [copy, without_editable]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MTLKIT_", "PYTHON"))}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, folders))} | dict(variables or {})
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def two_processes(code: str, given: object, folder: Path) -> list:
    """Returns what `work(rank, given)`, defined in `code`, returns in each of two processes; torch transfers the data.

    Args:
        code: may import the harness.
        given: the second argument.
        folder: an empty one.
    """
    torch.save(given, folder / "given.pt")
    (folder / "script.py").write_text(code + TWO_PROCESSES)
    process = run_python([folder / "script.py", folder], folder, path=PATH)
    assert process.returncode == 0, process.stderr
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(2)]
