"""Runs published projects unedited on mtlkit, and writes the table of docs/bring_your_model.md.

    python tools/third_party.py FOLDER [--projects NAME ...] [--out docs/bring_your_model.md]

FOLDER holds clones with the folder names of `third_party_projects.py`. Each network is built in a separate process
after `mtlkit.compat.install()`, run, accelerated and run again, with one image, and with gradients of everything for a
training step. "Before" says how the project's own code scans: with mtlkit's selective scan under the name that it
imports, or with a loop.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

BEGIN, END = "<!-- third-party table: begin -->", "<!-- third-party table: end -->"
HEAD = (
    "| project | commit | network | runs | layers | difference | inference | training step | before |",
    "|---|---|---|---|---|---|---|---|---|",
)
LIMIT_S = 900
NEAR_ZERO = 1e-3
REPEATS, LONG_S = (2, 9), 4  # least and largest number of measurements, and the seconds after which they are enough


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the selected projects, prints a line for each, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # pyright: ignore[reportOptionalMemberAccess]
    parser.add_argument("folder", type=Path, help="folder of the clones")
    parser.add_argument("--projects", nargs="+", help="names, as in third_party_projects.py; default: all")
    parser.add_argument("--out", type=Path, help="Markdown file in which to update the table between the markers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(run(options.worker, options.folder, options.threads)))
        return 0
    from third_party_projects import PROJECTS

    names = options.projects or list(PROJECTS)
    unknown = [name for name in names if name not in PROJECTS]
    if unknown:
        parser.error(f"--projects: expected some of {', '.join(PROJECTS)}; got {', '.join(unknown)}")
    rows = []
    for name in names:
        rows.append(measured(name, PROJECTS[name].folder, options.folder, options.threads))
        print(line(rows[-1]), flush=True)
    print(summary(rows))
    if options.out:
        write(options.out, rows)
    return 0


# --- the table --------------------------------------------------------------------------------------------------------


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    if "failure" in row:
        cells = [row["name"], row.get("commit", ""), row.get("network", ""), f"no: {row['failure']}", *[""] * 5]
    else:
        found = row["replaced"] + row["left"]
        served = f"{row['served']} served" if row["served"] else ""
        layers = ", ".join(filter(None, (f"{row['replaced']} of {found}" if found else "", served)))
        if not row["replaced"]:  # before and after are the same
            row = row | {"difference": None, "before": "mtlkit's block" if served else row["before"]}
            row["seconds"] = {what: (None, after) for what, (_, after) in row["seconds"].items()}
        difference = "–" if row["difference"] is None else f"{row['difference']:.0e}"
        speeds = [speed(row["seconds"].get(what)) for what in ("inference", "training step")]
        runs = "yes" if row["runs"] else "accelerated only"
        cells = [row["name"], row["commit"], row["network"], runs, layers, difference, *speeds, row["before"]]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def speed(seconds: tuple[float | None, float] | None) -> str:
    """The times before and after in milliseconds, and their ratio."""
    if seconds is None:
        return "–"
    before, after = seconds
    if before is None:
        return f"{milliseconds(after)} ms"
    return f"{milliseconds(before)} → {milliseconds(after)} ms, {before / after:.1f}x"


def milliseconds(seconds: float) -> str:
    """Three significant digits below a second, else whole milliseconds."""
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """How many networks run, and how many are accelerated."""
    done = [row for row in rows if "failure" not in row]
    whole = sum(row["replaced"] + row["served"] > 0 and row["left"] == 0 for row in done)
    return f"{len(done)} of {len(rows)} networks run, {whole} with mtlkit's layer for every scan"


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replaces the table between the markers in a file."""
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path}: expected the markers {BEGIN} and {END}")
    head, _, rest = text.partition(BEGIN)
    table = "\n".join((*HEAD, *map(line, rows)))
    path.write_text(f"{head}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}")


# --- one project ------------------------------------------------------------------------------------------------------


def measured(name: str, folder: str, clones: Path, threads: int) -> dict[str, Any]:
    """The result for a project, found in a separate process."""
    root = clones / folder
    row: dict[str, Any] = {"name": name}
    if not root.is_dir():
        return row | {"failure": f"there is no {root}"}
    row["commit"] = commit(root)
    command = [sys.executable, __file__, str(clones), "--worker", name, "--threads", str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return row | {"failure": f"it took more than {LIMIT_S} s"}
    try:
        return row | json.loads(done.stdout.strip().rpartition("\n")[2])
    except json.JSONDecodeError:
        last = (done.stderr.strip() or "no output").rpartition("\n")[2]
        return row | {"failure": f"the process ended with {done.returncode}: {last}"}


def commit(root: Path) -> str:
    """The commit of a clone; empty if the folder is not one."""
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def run(name: str, clones: Path, threads: int) -> dict[str, Any]:
    """Builds a project's network, runs it, accelerates it and runs it again."""
    warnings.filterwarnings("ignore")
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")  # for projects that launch their own kernels
    from third_party_projects import PROJECTS

    import mtlkit

    torch.set_num_threads(threads)
    project = PROJECTS[name]
    row: dict[str, Any] = {"network": project.network}
    mtlkit.compat.install(*project.packages)
    if project.block:
        use_block(clones / project.block)
    backend = "reference" if project.loop else "auto"
    with contextlib.redirect_stdout(sys.stderr):  # keeps the project's output out of the result
        try:
            with mtlkit.compat.cuda_on_cpu():  # for modules that create a network on a GPU at import
                torch.manual_seed(0)
                plain, inputs = project.build(clones / project.folder)
                model, _ = project.build(clones / project.folder)
        except Exception as error:
            return row | {"failure": f"import: {short(error)}"}
        model.load_state_dict(unhidden(plain.eval()).state_dict())
        with scanning() as scanned, mtlkit.use_backend(backend):
            exact, failure = attempt(lambda: infer(plain, inputs))
        own = "its own loop" if not scanned else "token by token" if project.loop else " and ".join(sorted(scanned))
        row["before"] = f"no: {failure}" if failure else own
        report = mtlkit.accelerate(model.eval())
        row |= {
            "replaced": sum(not entry.form.startswith("depthwise") for entry in report.replaced),  # scans and levels
            "left": len(report.left),
            "served": len(report.already),
            "runs": failure is None,
        }
        row["reasons"] = sorted({entry.reason for entry in report.left})
        found, still = attempt(lambda: infer(model, inputs))
        if still is not None:
            return row | {"failure": f"forward: {still}"}
        row["difference"] = None if exact is None else difference(found, exact)
        row["seconds"] = timed(None if exact is None else plain, model, inputs, backend)
    return row


def use_block(file: Path) -> None:
    """Uses the Mamba block of a file in place of the one that mtlkit provides."""
    name = "mamba_ssm.modules.mamba_simple"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: expected a Python file")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    importlib.import_module("mamba_ssm").Mamba = module.Mamba  # pyright: ignore[reportAttributeAccessIssue]


SCANS = {"mtlkit/operators": "mtlkit's scan", "triton/runtime/interpreter": "interpreted Triton"}


@contextlib.contextmanager
def scanning() -> Iterator[set[str]]:
    """Records which of SCANS are called; the set is complete when the context ends."""
    called: set[str] = set()

    def notice(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            called.update(name for path, name in SCANS.items() if path in frame.f_code.co_filename)

    sys.setprofile(notice)
    try:
        yield called
    finally:
        sys.setprofile(None)


def short(error: BaseException) -> str:
    """The first line of an exception."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def attempt(function: Callable[[], Any]) -> tuple[Any, str | None]:
    """The return value of a function, or the reason why it failed."""
    try:
        return function(), None
    except Exception as error:
        return None, short(error)


def unhidden(model: Any) -> Any:
    """The model after moving every parameter that is near zero at the start, where it would hide a difference."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and parameter.abs().max() < NEAR_ZERO:
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def infer(model: Any, inputs: tuple) -> Any:
    """The first output, computed without gradients."""
    import torch

    torch.manual_seed(1)  # for networks with random parts, such as MambaIRv2's routing
    with torch.no_grad():
        return first(model(*inputs))


def step(model: Any, inputs: tuple) -> None:
    """Forward, backward and a step of plain gradient descent."""
    import torch

    model.zero_grad()
    first(model(*inputs)).float().square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-6)


def first(output: Any) -> Any:
    """The first tensor of an output."""
    while not hasattr(output, "dtype"):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


def timed(plain: Any, model: Any, inputs: tuple, backend: str) -> dict[str, tuple[float | None, float]]:
    """Shortest seconds of inference and of a training step, before (on a backend) and after, measured in turn."""
    import mtlkit

    seconds: dict[str, tuple[float | None, float]] = {}
    for what, function in (("inference", infer), ("training step", step)):
        times: tuple[list[float], list[float]] = ([], [])
        start = time.perf_counter()
        while len(times[1]) < REPEATS[0] or (len(times[1]) < REPEATS[1] and time.perf_counter() - start < LONG_S):
            if plain is not None:
                with mtlkit.use_backend(backend):
                    times[0].append(stopwatch(function, plain, inputs))
            times[1].append(stopwatch(function, model, inputs))
        seconds[what] = (min(times[0], default=None), min(times[1]))
    return seconds


def stopwatch(function: Callable[..., object], *arguments: object) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def difference(found: Any, exact: Any) -> float:
    """|found - exact| / |exact| in the 2-norm."""
    return ((found - exact).double().norm() / exact.double().norm()).item()


if __name__ == "__main__":
    sys.exit(main())
