"""Checks in compiled CUDA kernels that none spills and that the scans' inner loops are short, without a GPU.

If mtlkit._C contains CUDA kernels, these are read; otherwise nvcc compiles them here, if it is available.
"""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from mtlkit import _native

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCES = sorted((CSRC / "cuda").rglob("*.cu"))
ARCHS = ("sm_80", "sm_90")
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
BUILT = _native.C is not None and _native.C.cuda

# Instructions per state update in the loops over tokens, by number of states. Backward computes a tile twice: first all
# of its groups of tokens except the last of eight, to find states, then all of them.
PER_UPDATE = {"ss2d_fwd": 7.75, "ss2d_bwd": 28, "selective_scan_fwd": 7.5, "selective_scan_bwd": 28}
PER_UPDATE_WITH_CONSTANT_B_OR_C = {"selective_scan_fwd": 7.25, "selective_scan_bwd": 26}
PER_UPDATE_ALONG_AN_ORDER = {"selective_scan_fwd": 9, "selective_scan_bwd": 32}
ALL_GROUPS_BUT_ONE = 7 / 8
STATES = 16


def tool(name: str) -> str | None:
    """CUDA's program with this name: from PATH, or from Triton."""
    try:
        from triton.backends import nvidia
    except ImportError:
        return shutil.which(name)
    return shutil.which(name) or shutil.which(name, path=Path(nvidia.__file__).parent / "bin")


pytestmark = [
    pytest.mark.skipif(not BUILT and NVCC is None, reason="built without CUDA; no nvcc on PATH, none named in CUDACXX"),
    pytest.mark.skipif(
        not tool("cuobjdump") or not tool("nvdisasm"), reason="neither CUDA's binary tools nor Triton's"
    ),
]


def run(*command: object, cwd: Path | None = None) -> str:
    process = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


class Kernel(NamedTuple):
    name: str  # including template arguments
    arch: str
    cubin: Path
    symbol: str
    registers: int
    stack: int  # bytes, of spilled registers and arrays
    shared: int  # bytes, in addition to what a launch requests


@pytest.fixture(scope="module")
def cubins(tmp_path_factory) -> list[Path]:
    """One file per source and architecture; its name contains the architecture."""
    folder = tmp_path_factory.mktemp("cubins")

    def compiled(job: tuple[Path, str]) -> None:
        source, arch = job
        flags = ["-cubin", f"-arch={arch}", "-std=c++17", "--expt-relaxed-constexpr", f"-I{CSRC}"]
        run(NVCC, *flags, "-o", folder / f"{source.parent.name}_{source.stem}.{arch}.cubin", source)

    if BUILT:
        run(tool("cuobjdump"), "-xelf", "all", _native.C.__file__, cwd=folder)
    else:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(compiled, [(source, arch) for source in SOURCES for arch in ARCHS]))
    return sorted(folder.glob("*.cubin"))


def readable(name: str) -> str:
    """A kernel's name and template arguments, without namespaces and arguments."""
    return re.sub(r"\(.*", "", re.sub(r"\(anonymous namespace\)::|\w+::", "", name.removeprefix("void ")))


@pytest.fixture(scope="module")
def kernels(cubins) -> list[Kernel]:
    found = []
    for cubin in cubins:
        arch = re.search(r"sm_\d+", cubin.name)[0]
        usage = run(tool("cuobjdump"), "-res-usage", cubin)
        for symbol, *numbers in re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage):
            found.append(Kernel(symbol, arch, cubin, symbol, *map(int, numbers)))
    names = run("c++filt", *(k.symbol for k in found)).splitlines()
    return sorted(k._replace(name=readable(name)) for k, name in zip(found, names, strict=True))


def test_registers_suffice(kernels):
    for k in kernels:
        print(f"{k.arch} {k.name:60} {k.registers:4} registers {k.stack:4} bytes of stack {k.shared:6} shared")
    names = {k.name.split("<")[0] for k in kernels}
    for source in SOURCES:
        assert names.issuperset(re.findall(r"\b(\w+_kernel)\(const", source.read_text())), source
    assert set(ARCHS) <= {k.arch for k in kernels}
    assert not [k for k in kernels if k.stack]


# --- the scans' inner loops -------------------------------------------------------------------------------------------


@cache
def instructions(cubin: Path) -> dict[str, list[str]]:
    """The disassembly of each kernel: instructions without predicates, and `label:` lines."""
    listings: dict[str, list[str]] = {}
    for line in run(tool("nvdisasm"), "-c", cubin).splitlines():
        if section := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
            listing = listings.setdefault(section[1], [])
        elif label := re.match(r"(\.L_x_\d+):", line):
            listing.append(label[0])
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;", line):
            listing.append(instruction[1])
    return listings


class Loop(NamedTuple):
    first: int
    last: int
    exponentials: int
    reads: int  # of shared memory


def loops(listing: list[str]) -> list[Loop]:
    """The instructions from the target of each backward branch to the branch."""
    labels, code, found = {}, [], []
    for line in listing:
        if line.endswith(":"):
            labels[line[:-1]] = len(code)
            continue
        code.append(line)
        target = re.match(r"BRA.*`\((\.L_x_\d+)\)", line)
        if target and target[1] in labels:
            body = code[labels[target[1]] :]
            counts = (sum(i.startswith(name) for i in body) for name in ("MUFU.EX2", "LDS"))
            found.append(Loop(labels[target[1]], len(code), *counts))
    return found


def loops_over_tokens(listing: list[str], states: int) -> list[Loop]:
    """Loops with one exponential for each of the lane's states and a few tokens, which read shared memory.

    An inner loop, such as one over the parts of a sum, counts as one iteration.
    """
    updating = [loop for loop in loops(listing) if loop.exponentials >= 2 * states and loop.reads]
    return [
        outer
        for outer in updating
        if not any(outer.first <= i.first and i.last <= outer.last and i != outer for i in updating)
    ]


def layout(kernel: Kernel) -> tuple[int, int]:
    """The number of states per lane, and of lanes per channel."""
    states, lanes = re.search(r"Layout<(\d+), (\d+)", kernel.name).groups()
    return int(states), int(lanes)


@pytest.mark.parametrize("scan", PER_UPDATE)
def test_loops_over_tokens_are_short(kernels, scan):
    served = [k for k in kernels if k.name.startswith(f"{scan}_kernel<Layout")]
    served = [k for k in served if layout(k)[0] * layout(k)[1] == STATES]
    assert {k.arch for k in served} == {k.arch for k in kernels}
    for kernel in served:
        found = loops_over_tokens(instructions(kernel.cubin)[kernel.symbol], layout(kernel)[0])
        *shorter, longest = sorted((loop.last - loop.first) / loop.exponentials for loop in found)
        total = ALL_GROUPS_BUT_ONE * sum(shorter) + longest
        print(
            f"{kernel.arch} {kernel.name}: {total:.2f} instructions per state update, {longest:.2f} in the longest loop"
        )
        # template arguments of selective_scan: layout, whether B and C are constant, whether there is an order
        if re.match(r"selective_scan_\w+<Layout<[^>]*>, \w+, \w+, true", kernel.name):
            bounds = PER_UPDATE_ALONG_AN_ORDER
        elif re.match(r"selective_scan_\w+<Layout<[^>]*>, (true|\w+, true)", kernel.name):
            bounds = PER_UPDATE_WITH_CONSTANT_B_OR_C
        else:
            bounds = PER_UPDATE
        assert total <= bounds[scan]
