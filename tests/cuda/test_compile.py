"""Every CUDA source compiles, and no kernel spills: checked wherever nvcc is, GPU or not."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")


@pytest.mark.skipif(NVCC is None, reason="nvcc is neither on PATH nor named in CUDACXX")
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("source", sorted((CSRC / "cuda").glob("*.cu")), ids=lambda source: source.stem)
def test_compiles_without_spills(tmp_path, source, arch):
    command = [NVCC, "-cubin", f"-arch={arch}", "-std=c++17", f"-I{CSRC}", "-Xptxas=-v", "-o", tmp_path / "out", source]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr

    kernels = re.findall(r"Compiling entry function '(\w+)'", process.stderr)
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", process.stderr)]
    shared = [int(count) for count in re.findall(r"(\d+) bytes smem", process.stderr)]
    spills = [int(count) for count in re.findall(r"(\d+) bytes spill", process.stderr)]
    print(
        f"{source.name} {arch}: {len(kernels)} kernels, at most {max(registers, default=0)} registers "
        f"and {max(shared, default=0)} bytes of shared memory"
    )
    assert bool(kernels) == ("__global__" in source.read_text())
    assert len(registers) == len(kernels)
    assert len(spills) >= 2 * len(kernels)  # stores and loads
    assert not any(spills)
