"""`make gpu`: tests and benchmarks mtlkit on a GPU in stages, the most important first.

The output of a stage goes to build/gpu/log.txt, its result into a line of build/gpu/summary.md, and benchmark rows to
benchmarks/results/<gpu>.json every few seconds, so that an interrupted run keeps its results. A stage that fails does
not stop the others. Without a GPU only `mtlkit doctor` runs, and the exit status is 1.

    python tools/gpu.py                    all stages, without time limit
    python tools/gpu.py --minutes 10       what fits into ten minutes
    python tools/gpu.py doctor small       only these stages
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, TextIO

ROOT = Path(__file__).resolve().parents[1]
CUDA = str(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin")  # if nvcc is not on PATH
GRACE = 10.0  # seconds that an interrupted stage has to write its results
SANITIZED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # one allocation per tensor, so that overruns are detected
SMALL = ("pytest", "tests/gpu/test_small.py", "-m", "gpu")
ROWS = ("pytest", "benchmarks/test_bench_gpu.py", "-m", "gpu")
FIRST = "((ss2d or selective_scan) and batch32 or task_interaction and busi_224 and batch24)"
COMPILED = "triton or compile"  # backends whose kernels are compiled at their first use


class Stage(NamedTuple):
    """The module that Python runs, its share of a limited time, and whether several processes run it."""

    line: tuple[str, ...]
    share: float
    processes: bool = False


STAGES: Mapping[str, Stage] = {
    "doctor": Stage(("mtlkit", "doctor", "--quick", "--force", "--report"), 0.1),
    "small": Stage(SMALL, 0.14, processes=True),
    "scans": Stage((*ROWS, "-k", f"{FIRST} and not ({COMPILED})"), 0.25),
    "compile": Stage((*ROWS, "-k", f"{FIRST} and ({COMPILED})", "--untimed"), 0.1, processes=True),
    "triton": Stage((*ROWS, "-k", f"{FIRST} and ({COMPILED})"), 0.14),
    "memcheck": Stage(SMALL, 0.07),
    "racecheck": Stage(SMALL, 0.07),
    "networks": Stage((*ROWS, "-k", "training_step"), 0.1),
    "tests": Stage(("pytest", "tests/gpu", "-m", "gpu"), 0.5, processes=True),
    "benchmarks": Stage((*ROWS, "--missing"), 1),
}
HEAD = "| stage | result | seconds | last line |\n|---|---|---|---|\n"


class Folders(NamedTuple):
    """Output folders: one for logs and the summary, one for benchmark rows."""

    out: Path
    results: Path


def command(stage: str, folders: Folders, sanitizer: str, gpu: bool = True) -> list[str]:
    """The command line of a stage."""
    line = [sys.executable, "-m", *STAGES[stage].line]
    if stage == "doctor":
        line.append(str(folders.out / "doctor.md"))
        line += ["--backend", "cuda"] if gpu else []  # compiling Triton's kernels would take all of its time
    if STAGES[stage].line[: len(ROWS)] == ROWS:
        line.append(f"--results={folders.results}")
    if STAGES[stage].processes and find_spec("xdist"):
        line += ["-n", str(max(1, min(8, (os.cpu_count() or 1) // 2))), "--dist", "worksteal"]
    if stage in ("memcheck", "racecheck"):
        sanitizer = shutil.which(sanitizer) or shutil.which(sanitizer, path=CUDA) or sanitizer
        line = [sanitizer, "--tool", stage, "--error-exitcode", "1", *line]
    return line


def cut(process: subprocess.Popen) -> None:
    """Ends a stage: first by Ctrl-C, after which pytest still reports its results."""
    if process.poll() is not None:
        return
    for sign, seconds in ((signal.SIGINT, GRACE), (signal.SIGKILL, GRACE)):
        try:
            os.killpg(process.pid, sign)
            process.wait(seconds)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def run(line: Sequence[str], log: TextIO, variables: Mapping[str, str], seconds: float | None) -> tuple[str, str]:
    """Runs a stage, shows and logs its output; returns its result in words and its last line."""
    if shutil.which(line[0]) is None:
        return (
            "failed",
            f"{line[0]} not found; it comes with the CUDA toolkit: name it by --sanitizer, SANITIZER of make",
        )
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | dict(variables)
    process = subprocess.Popen(
        line, cwd=ROOT, env=environment, text=True, errors="replace", start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    over = threading.Event()

    def stop() -> None:
        over.set()
        cut(process)

    timer = threading.Timer(seconds, stop) if seconds is not None else None
    last = ""
    try:
        if timer is not None:
            timer.start()
        assert process.stdout is not None
        for text in process.stdout:
            print(text, end="", flush=True)
            log.write(text)
            log.flush()
            last = text.strip(" =\n") or last
        status = process.wait()
    except BaseException:
        cut(process)
        raise
    finally:
        if timer is not None:
            timer.cancel()
    if over.is_set():
        return "cut off", last
    return "passed" if status == 0 else f"failed ({status})", last


class Peers:
    """Peers that were packed as sources, compiled during the first stages."""

    BEFORE, SHARE = "scans", 0.3

    def __init__(self, log: Path) -> None:
        bundle = json.loads((ROOT / "bundle.json").read_text())
        line = [sys.executable, "tools/gpu_peers.py", "peers", "--out", "build/peers", "--install"]
        line += ["--archs", bundle["archs"], "--jobs", str(os.cpu_count() or 1)]
        with log.open("w") as file:
            self.process = subprocess.Popen(line, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)
        self.log = log

    def wait(self, seconds: float | None) -> tuple[str, str]:
        """Waits for the compilation, at most this long; returns the result and the last line of output."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            cut(self.process)
            return "cut off", f"see {self.log.name}"
        last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        return "passed" if status == 0 else f"failed ({status})", "".join(last)


def why_no_gpu() -> str | None:
    """Why no GPU can be used here, if so; found in a separate process, which does not keep the GPU in use."""
    code = "import torch; print(torch.__version__, torch.cuda.is_available())"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if process.returncode != 0:
        return f"torch does not import: {process.stderr.strip().splitlines()[-1]}"
    version, found = process.stdout.split()[-2:]
    return None if found == "True" else f"torch {version} sees no GPU here"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stages; returns 1 if one failed or there is no GPU."""
    start = time.monotonic()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs, thus stages, ignore it
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES], help=f"default: {' '.join(STAGES)}")
    parser.add_argument("--minutes", type=float, help="time limit for all stages, shared out among them; default: none")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="folder for log and summary")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder for <gpu>.json")
    parser.add_argument("--sanitizer", default="compute-sanitizer", help="path of compute-sanitizer")
    options = parser.parse_args(arguments)
    if options.minutes is not None and not options.minutes > 0:
        parser.error(f"--minutes: expected more than 0, got {options.minutes:g}")
    folders = Folders(options.out.resolve(), options.results.resolve())
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    summary, log = folders.out / "summary.md", folders.out / "log.txt"
    missing = why_no_gpu()
    summary.write_text(f"**No GPU: {missing}. Only mtlkit doctor ran.**\n\n{HEAD}" if missing else HEAD)
    stages = ["doctor"] if missing else options.stages or list(STAGES)
    failed = missing is not None
    peers = Peers(folders.out / "peers.txt") if Peers.BEFORE in stages and (ROOT / "peers").is_dir() else None

    def report(stage: str, result: str, began: float, last: str) -> None:
        with summary.open("a") as rows:
            rows.write(f"| {stage} | {result} | {time.monotonic() - began:.0f} | {last.replace('|', '/')} |\n")

    try:
        with log.open("w") as file:
            for stage in stages:
                if peers is not None and stage == Peers.BEFORE:
                    began = time.monotonic()
                    most = (
                        None
                        if options.minutes is None
                        else max(1, 60 * options.minutes * Peers.SHARE - (began - start))
                    )
                    result, last = peers.wait(most)
                    report("peers", result, began, last)
                line, left = command(stage, folders, options.sanitizer, missing is None), None
                began = time.monotonic()
                if options.minutes is not None:
                    left = 60 * options.minutes - (began - start) - GRACE
                    left = min(left, 60 * options.minutes * STAGES[stage].share)
                title = f"\n== {stage}: {' '.join(line)}\n"
                print(title, flush=True)
                file.write(title)
                variables = SANITIZED if stage == "memcheck" else {}
                result, last = "not run", "the time is up"
                if left is None or left > 0:
                    result, last = run(line, file, variables, left)
                if result == "failed":  # the stage's program was not found
                    print(last)
                failed |= result.startswith("failed") or (result == "cut off" and "failed" in last)
                report(stage, result, began, last)
    finally:
        if peers is not None:
            cut(peers.process)
    print(f"\n{summary}:\n\n{summary.read_text()}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
