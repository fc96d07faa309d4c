"""Builds a wheel for Linux on x86-64 or aarch64 that runs with glibc 2.28 or later: `make wheel`.

    python tools/wheel.py --out dist

packs the sources, unpacks them, compiles them with Zig's compiler from the package ziglang, and lets auditwheel check
which system libraries the wheel needs. With `--cuda on` it includes CUDA kernels: nvcc compiles them with the system's
C++ compiler, and Zig links them. `tools/try_wheel.py` tests the wheel where it is installed.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from native import PATH, PLATFORMS, ROOT, compiler

POLICY = f"manylinux_2_28_{platform.machine()}"


def run(command: list, folder: Path, **variables: str) -> None:
    """Runs a command, and shows its output if it fails."""
    environment = os.environ | {"PATH": PATH} | variables
    process = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if process.returncode != 0:
        sys.stdout.buffer.write(process.stdout)
        raise SystemExit(f"{command[0]}: exit status {process.returncode}; the reason is above")


def pack(folder: Path) -> Path:
    """Writes the source distribution into `folder`, and unpacks it there."""
    run([sys.executable, "-c", f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"], ROOT)
    (archive,) = folder.glob("mtlkit-*.tar.gz")
    shutil.unpack_archive(archive, folder)
    (sources,) = (path for path in folder.glob("mtlkit-*") if path.is_dir())
    return sources


def build(sources: Path, out: Path, cuda: str) -> Path:
    """Builds the wheel from unpacked sources, and checks it.

    Returns:
        The wheel, named after the policy that it meets.
    """
    cxx = compiler(sources, PLATFORMS[f"linux-{platform.machine()}"][2])
    raw = sources / "raw"
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", raw, "."]
    print(f"compiling {'with' if cuda == 'on' else 'without'} CUDA kernels, which takes minutes", flush=True)
    # -s drops the debug information in Zig's objects
    run(wheel, sources, CXX=str(cxx), LDFLAGS="-s", MTLKIT_CUDA=cuda, MTLKIT_NATIVE="on")
    (built,) = raw.glob("*.whl")
    checked = sources / "checked"
    # fails if the wheel needs a newer system than the policy allows
    run([sys.executable, "-m", "auditwheel", "repair", "--plat", POLICY, "-w", checked, built], sources)
    (path,) = checked.glob("*.whl")
    if copies := [name for name in zipfile.ZipFile(path).namelist() if name.startswith("mtlkit.libs/")]:
        raise SystemExit(f"{path.name}: expected no other libraries in the wheel, got {', '.join(copies)}")
    out.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(path, out / path.name))


def main() -> int:
    """Builds the wheel for this Python."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the wheel")
    parser.add_argument(
        "--cuda", choices=("on", "off"), default="off", help="whether to build the CUDA kernels; default off"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = build(pack(Path(folder)), arguments.out.resolve(), arguments.cuda)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
