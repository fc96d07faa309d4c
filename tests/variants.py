"""Builds the CPU kernels with a sanitizer, or AVX-512's for AVX2, and runs the operators' tests with them.

`make asan`, `ubsan`, `tsan`, `avx512`. The tests run in PyTorch and in ONNX Runtime.

With a sanitizer, a process ends at the first finding. Leaks are not checked: Python and PyTorch never free some memory.
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
EMULATION = ROOT / "tests" / "harness" / "avx512_by_avx2.h"


class Variant(NamedTuple):
    """A way to build and test the kernels.

    Attributes:
        environment: what is set when the tests run.
        sanitizer: the compiler's name for it, or none.
        library: the sanitizer's, if it must be loaded first.
        flags: further ones for the compiler.
        skips: arguments of pytest that leave tests out.
    """

    environment: dict[str, str]
    sanitizer: str = ""
    library: str = ""
    flags: tuple[str, ...] = ()
    skips: tuple[str, ...] = ()


NODES = tuple(f"tests/deploy/test_{part}nodes.py" for part in ("", "sequence_", "map_"))  # in ONNX Runtime

# Signals are left to the tests that expect them.
VARIANTS = {
    "asan": Variant({"ASAN_OPTIONS": "handle_segv=0:detect_leaks=0"}, "address", "libasan.so"),
    "ubsan": Variant({"UBSAN_OPTIONS": "handle_segv=0:print_stacktrace=1"}, "undefined"),
    # The kernels use std::thread here (csrc/bindings/threads.cpp), because ThreadSanitizer does not see how libgomp's
    # threads synchronise. It does not see this for PyTorch's and ONNX Runtime's threads either, whose code is excluded,
    # and cannot follow forks of several threads. tests/bindings/test_thread_pool.py tests the libraries' thread pool.
    "tsan": Variant(
        {"TSAN_OPTIONS": "handle_segv=0:halt_on_error=1:ignore_noninstrumented_modules=1"},
        "thread",
        "libtsan.so",
        skips=("--ignore=tests/operators/test_fork.py", *(f"--deselect={path}" for path in NODES)),
    ),
    # Other processes import the module without the emulation.
    "avx512": Variant(
        {"MTLKIT_CPU_ISA": "avx2"},
        flags=("-include", str(EMULATION), "-Wno-psabi"),
        skips=("--deselect=tests/operators/test_backends.py::test_environment_can_lower_the_instruction_set",),
    ),
}
THREADS = 4
# torch.compile starts a compiler, which would run under the sanitizer, too.
TESTS = ("tests/operators", *NODES, "-k", "not compiles_once")


def build(name: str) -> Path:
    """The folder of the module built in this way."""
    folder, variant = ROOT / "build" / name, VARIANTS[name]
    configure = [
        *("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DMTLKIT_CUDA=off"),
        *(f"-DMTLKIT_SANITIZE={variant.sanitizer}", f"-DMTLKIT_OUTPUT_DIR={folder}"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
    ]
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    environment["CXXFLAGS"] = f"{os.environ.get('CXXFLAGS', '')} {shlex.join(variant.flags)}"
    for command in (configure, ["cmake", "--build", folder]):
        subprocess.run(list(map(str, command)), env=environment, check=True)
    return folder


def library(name: str) -> str:
    """The path of a library of the compiler."""
    command = [*shlex.split(os.environ.get("CXX", "c++")), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("tests", nargs="*", help="arguments of pytest, options after --; else the operators' tests")
    arguments = parser.parse_args()
    variant = VARIANTS[arguments.variant]
    environment = os.environ | variant.environment | {"VARIANT": str(build(arguments.variant))}
    environment |= {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "passive"}
    if variant.library:  # loads the C++ library too, so that its exceptions are intercepted
        environment["LD_PRELOAD"] = " ".join(map(library, (variant.library, "libstdc++.so")))
    plugins = ("-p", "harness.variant", "-p", "no:cacheprovider", "--capture=sys")  # findings bypass sys.stderr
    command = [sys.executable, "-m", "pytest", *plugins, *(arguments.tests or (*TESTS, *variant.skips))]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
