"""`make gpu`: checks and measures mtlkit on a GPU, in stages, the most valuable first.

Each stage leaves its log in build/gpu, and all of them a line in build/gpu/summary.md, so that an hour that is cut off
is not lost. A stage that fails does not stop the others.

    python tools/gpu.py                    all stages
    python tools/gpu.py doctor small       these alone
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("pytest", "tests/gpu/test_small.py", "-m", "gpu")
SANITIZED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # each tensor an allocation of its own, whose end is seen
STAGES: Mapping[str, tuple[str, ...]] = {
    "doctor": ("mtlkit", "doctor", "--force", "--report"),
    "small": SMALL,
    "scans": ("pytest", "benchmarks/test_bench_gpu.py", "-m", "gpu", "-k", "ss2d or selective_scan or interaction"),
    "memcheck": SMALL,
    "racecheck": SMALL,
    "tests": ("pytest", "tests", "-m", "gpu"),
    "benchmarks": ("pytest", "benchmarks", "-m", "gpu"),
}


def command(stage: str, out: Path, sanitizer: str) -> list[str]:
    """What a stage runs."""
    line = [sys.executable, "-m", *STAGES[stage]]
    if stage == "doctor":
        line.append(str(out / "doctor.md"))
    if stage in ("memcheck", "racecheck"):
        line = [sanitizer, "--tool", stage, "--error-exitcode", "1", *line]
    return line


def run(stage: str, line: Sequence[str], out: Path) -> int:
    """Runs a stage, shows what it prints, and keeps that in its log; returns the exit status."""
    if shutil.which(line[0]) is None:
        print(f"{line[0]} not found; compute-sanitizer comes with the CUDA toolkit: name it by SANITIZER=PATH")
        return 127
    environment = os.environ | (SANITIZED if stage == "memcheck" else {})
    with (out / f"{stage}.log").open("w") as log:
        process = subprocess.Popen(
            line, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert process.stdout is not None
        for text in process.stdout:
            print(text, end="", flush=True)
            log.write(text)
            log.flush()
    return process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stages; returns 1 where one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stages", nargs="*", choices=[[], *STAGES], help=f"default: {' '.join(STAGES)}")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="default: build/gpu")
    parser.add_argument("--sanitizer", default="compute-sanitizer", help="the program")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    summary = options.out / "summary.md"
    summary.write_text("| stage | result | seconds | command |\n|---|---|---|---|\n")
    failed = False
    for stage in options.stages or STAGES:
        line = command(stage, options.out, options.sanitizer)
        print(f"\n== {stage}: {' '.join(line)}", flush=True)
        start = time.monotonic()
        status = run(stage, line, options.out)
        failed |= status != 0
        result = "passed" if status == 0 else f"failed ({status})"
        with summary.open("a") as file:
            file.write(f"| {stage} | {result} | {time.monotonic() - start:.0f} | `{' '.join(line)}` |\n")
    print(f"\n{summary}:\n\n{summary.read_text()}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
