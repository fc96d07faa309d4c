"""Runs the bundle of tools/gpu_bundle.py on a machine with a GPU: python3 run.py, or python3 run.py MINUTES.

Creates an environment next to this file, on top of the Python that runs it, installs the bundle's wheels into it
without a network, and runs the stages of `make gpu`, the most important first. Results are written as they arrive, into
the folder $OUT, or into results next to this file: summary.md, log.txt, doctor.md and <gpu>.json.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHOWN = 4  # lines of the output of a failed installation


def why_not(bundle: dict) -> str | None:
    """The reason why this Python cannot run the bundle, if so."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version != bundle["python"]:
        return f"this bundle is for Python {bundle['python']}, and {sys.executable} is Python {version}"
    try:
        import torch
    except ImportError as error:
        return f"{sys.executable} has no torch that works ({error}); this bundle is for torch {bundle['torch']}"
    if torch.__version__.split(".")[:2] != bundle["torch"].split("."):
        print(f"This bundle is for torch {bundle['torch']}, and here is {torch.__version__}: peers may not load.")
    return None


def environment(folder: Path) -> Path:
    """The Python of an environment that sees all packages of the running Python, even of a virtual environment."""
    venv.EnvBuilder(system_site_packages=True, clear=True, with_pip=False).create(folder)
    python = folder / "bin" / "python"
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip())
    given = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (own / "given.pth").write_text("\n".join(given) + "\n")
    return python


def install(python: Path, names: list[str], dependencies: bool) -> str | None:
    """Installs packages from the bundle's wheels; returns the error."""
    (pip,) = (HERE / "wheels").glob("pip-*.whl")
    line = [python, pip / "pip", "install", "--quiet", "--no-index", "--no-cache-dir", "--find-links", HERE / "wheels"]
    line += [*([] if dependencies else ["--no-deps"]), *names]
    process = subprocess.run(list(map(str, line)), capture_output=True, text=True)
    return None if process.returncode == 0 else "\n".join(process.stderr.strip().splitlines()[-SHOWN:])


def main() -> int:
    """Returns the exit status of the stages, or 2 if the bundle cannot be installed."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("minutes", nargs="?", type=float, default=10, help="time limit for all stages; default 10")
    parser.add_argument("stages", nargs="*", help="run only these stages of tools/gpu.py")
    options = parser.parse_args()
    out = Path(os.environ.get("OUT") or HERE / "results").resolve()
    out.mkdir(parents=True, exist_ok=True)
    bundle = json.loads((HERE / "bundle.json").read_text())

    def end(error: str) -> int:
        print(error)
        (out / "summary.md").write_text(f"**Nothing ran: {error}**\n")
        return 2

    if error := why_not(bundle):
        return end(error)
    python = environment(HERE / "env")
    if error := install(python, bundle["packages"], dependencies=True):
        return end(f"the bundle's wheels do not install:\n{error}")
    for peer in bundle["peers"]:
        if error := install(python, [peer], dependencies=False):
            print(f"{peer} cannot be installed and is left out of the comparison:\n{error}")
    print(f"installed mtlkit ({bundle['commit']}) in {time.monotonic() - start:.0f} s", flush=True)
    left = options.minutes - (time.monotonic() - start) / 60
    line = [python, HERE / "tools" / "gpu.py", *options.stages, "--minutes", left, "--out", out, "--results", out]
    return subprocess.run(list(map(str, line)), cwd=HERE).returncode


if __name__ == "__main__":
    sys.exit(main())
