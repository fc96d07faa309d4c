"""Builds the CPU kernels with a sanitizer, and runs the operators' tests with them, in PyTorch and ONNX Runtime.

`make asan`, `ubsan`, `tsan`.

A process ends at the first finding. Leaks are not checked: Python and PyTorch never free some memory.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pybind11

ROOT = Path(__file__).resolve().parents[1]


class Sanitizer(NamedTuple):
    """The compiler's name for it, the library that must be loaded first (if any), its options, and tests to skip."""

    name: str
    library: str | None
    options: str
    skips: tuple[str, ...] = ()


NODES = tuple(f"tests/deploy/test_{part}nodes.py" for part in ("", "sequence_", "map_"))  # in ONNX Runtime

# Signals are left to the tests that expect them.
SANITIZERS = {
    "asan": Sanitizer("address", "libasan.so", "ASAN_OPTIONS=handle_segv=0:detect_leaks=0"),
    "ubsan": Sanitizer("undefined", None, "UBSAN_OPTIONS=handle_segv=0:print_stacktrace=1"),
    # The kernels use std::thread here (csrc/bindings/threads.cpp), because ThreadSanitizer does not see how libgomp's
    # threads synchronise. It does not see this for PyTorch's and ONNX Runtime's threads either, whose code is excluded,
    # and cannot follow forks of several threads. tests/bindings/test_thread_pool.py tests the libraries' thread pool.
    "tsan": Sanitizer(
        "thread",
        "libtsan.so",
        "TSAN_OPTIONS=handle_segv=0:halt_on_error=1:ignore_noninstrumented_modules=1",
        ("--ignore=tests/operators/test_fork.py", *(f"--deselect={path}" for path in NODES)),
    ),
}
THREADS = 4
# torch.compile starts a compiler, which would run under the sanitizer, too.
TESTS = ("tests/operators", *NODES, "-k", "not compiles_once")


def build(name: str) -> Path:
    """The folder of the module built with this sanitizer."""
    folder = ROOT / "build" / name
    configure = [
        *("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DMTLKIT_CUDA=off"),
        *(f"-DMTLKIT_SANITIZE={name}", f"-DMTLKIT_OUTPUT_DIR={folder}"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
    ]
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    for command in (configure, ["cmake", "--build", folder]):
        subprocess.run(list(map(str, command)), env=environment, check=True)
    return folder


def library(name: str) -> str:
    """The path of a library of the compiler."""
    command = [*shlex.split(os.environ.get("CXX", "c++")), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sanitizer", choices=SANITIZERS)
    parser.add_argument("tests", nargs="*", help="arguments of pytest; the tests of the operators if there are none")
    arguments = parser.parse_args()
    sanitizer = SANITIZERS[arguments.sanitizer]
    name, _, options = sanitizer.options.partition("=")
    environment = os.environ | {name: options, "SANITIZED": str(build(sanitizer.name))}
    environment |= {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "passive"}
    if sanitizer.library:  # loads the C++ library too, so that its exceptions are intercepted
        environment["LD_PRELOAD"] = " ".join(map(library, (sanitizer.library, "libstdc++.so")))
    plugins = ("-p", "harness.sanitized", "-p", "no:cacheprovider", "--capture=sys")  # findings bypass sys.stderr
    command = [sys.executable, "-m", "pytest", *plugins, *(arguments.tests or (*TESTS, *sanitizer.skips))]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
