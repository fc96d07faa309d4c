"""The CUDA kernels compile as HIP for AMD's GPUs. No build of mtlkit uses this: Triton's kernels run there."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCES = sorted(str(path.relative_to(CSRC)) for path in (CSRC / "cuda").rglob("*.cu"))
HIPCC = shutil.which("hipcc")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(HIPCC is None, reason="hipcc is not installed")]


@pytest.mark.parametrize("source", SOURCES)
def test_compiles_as_hip(source):
    command = [HIPCC, "--offload-arch=gfx90a", "-std=c++17", "-I", CSRC, "-fsyntax-only", "-x", "hip", CSRC / source]
    environment = os.environ | {"HIP_PLATFORM": "amd"}  # needed if nvcc is on PATH, too
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
