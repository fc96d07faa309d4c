"""The C interface and the CPU kernels on every platform: compiled and run there, and compared with the reference.

On this machine the runner links to the library that mtlkit installed; on others it contains the kernels, and also tests
backward.
"""

import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from native.cases import write

from mtlkit import deploy

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "native"
CROSS = "aarch64-linux-gnu-"
SUMS = "sum -23.6697, sum of squares 310.0006"  # printed by examples/c/scan.c
CASES, BACKWARD = 57, 11


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("cases") / "cases"
    assert write(path) == CASES
    return path


def program(*names: str) -> str:
    """The path of the first program that exists; skips the test if there is none."""
    for name in names:
        if path := shutil.which(name):
            return path
    return pytest.skip(f"{names[0]} is not installed")


def run(command: Sequence[object], **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "MTLKIT_CPU_ISA"} | variables
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def build(platform: str, *options: object, **variables: str) -> Path:
    """Builds runner and libraries with tools/native.py; returns their folder."""
    command = [sys.executable, HERE.parents[1] / "tools" / "native.py", platform, "--target", "mtlkit", "runner"]
    return Path(run([*command, *options], **variables).rpartition(": ")[2].strip())


def check(output: str, levels: Sequence[str], backward: bool = True) -> None:
    """Checks the output of the runner: every case at these levels, without failures."""
    found = re.fullmatch(
        r"starts with (\w+);([\w ]*): (\d+) cases forward, (\d+) backward in all, 0 failures", output.strip()
    )
    assert found, output
    assert found[2].split() == list(levels)
    assert (int(found[3]), int(found[4])) == (CASES, BACKWARD * len(levels) if backward else 0)


# --- this machine -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed_runner(tmp_path_factory) -> Path:
    try:
        library, include = Path(deploy.library_path("c")).parent, deploy.include_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("runner")
    (folder / "include").symlink_to(include)
    sources = [path for path in HERE.glob("*.cpp") if path.name != "backward.cpp"]
    link = ["-L", library, "-lmtlkit", f"-Wl,-rpath,{library}", "-pthread"]
    run([program("c++"), "-std=c++17", "-Wall", "-Werror", "-I", folder, *sources, *link, "-o", folder / "runner"])
    return folder / "runner"


def levels_of_this_machine() -> list[str]:
    from mtlkit import _native

    return _native.C.cpu_isa_levels()


def test_this_machine(installed_runner, cases):
    check(run([installed_runner, cases]), levels_of_this_machine(), backward=False)


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_environment_names_the_level(installed_runner, cases, level):
    if level not in levels_of_this_machine():
        pytest.skip(f"this machine has no {level}")
    assert run([installed_runner, cases, level], MTLKIT_CPU_ISA=level).startswith(f"starts with {level}; {level}:")


def test_wrong_results_are_noticed(installed_runner, cases, tmp_path):
    numbers, spoilt = cases.read_bytes(), tmp_path / "cases"
    spoilt.write_bytes(numbers.replace(struct.pack("<d", 1e-3), struct.pack("<d", 1.0)))
    process = subprocess.run([installed_runner, spoilt], capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "baseline, one thread: norm_gate (5, 33): y: relative error" in process.stdout

    spoilt.write_bytes(numbers[:-1])
    process = subprocess.run([installed_runner, spoilt], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (2, "the file of cases is short\n")


# --- other platforms --------------------------------------------------------------------------------------------------


def example(folder: Path, compiler: Sequence[object]) -> Path:
    """examples/c/scan.c, linked with the library for a platform."""
    made = folder / "objects" / "scan"
    source = HERE.parents[1] / "examples" / "c" / "scan.c"
    run([*compiler, "-std=c99", source, "-I", folder / "include", "-L", folder / "lib", "-lmtlkit", "-o", made])
    return made


@pytest.mark.parametrize("optimised", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["quick", "optimised"])
def test_aarch64(cases, optimised):
    emulator, compiler = program("qemu-aarch64", "qemu-aarch64-static"), program(f"{CROSS}g++")
    name, how = ("gcc", {}) if optimised else ("gcc-quick", {"CMAKE_BUILD_TYPE": "None", "CXXFLAGS": "-O0"})
    folder = build("linux-aarch64", "--cxx", compiler, "--folder", BUILD / f"linux-aarch64-{name}", **how)
    emulate = [emulator, "-L", "/usr/aarch64-linux-gnu", "-E", f"LD_LIBRARY_PATH={folder / 'lib'}"]
    check(run([*emulate, folder / "objects" / "runner", cases]), ["baseline"])
    assert f"baseline, 2 threads: {SUMS}" in run([*emulate, example(folder, [program(f"{CROSS}gcc")]), 2])


@pytest.mark.slow  # three minutes of processor time, most of it for compiling
def test_windows(cases):
    zig = Path(pytest.importorskip("ziglang", reason="ziglang is not installed").__file__).parent / "zig"
    wine = program("wine", "wine64")
    folder = build("windows-x86_64")
    # the registry and folders of Wine take seconds to create, and are reused
    settings = {"WINEPREFIX": str(BUILD / "wine"), "WINEDEBUG": "-all", "WINEDLLOVERRIDES": "mscoree,mshtml="}
    settings["WINEPATH"] = str(folder / "lib")
    check(run([wine, folder / "objects" / "runner.exe", cases], **settings), levels_of_this_machine())
    scan = example(folder, [zig, "cc", "-target", "x86_64-windows-gnu"])
    assert f"2 threads: {SUMS}" in run([wine, scan, 2], **settings)
