"""Starts the tests of the interpreted kernels, each file in a process of its own: see interpreted/conftest.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="torch brings no Triton on this platform")

FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.parametrize("file", sorted(FOLDER.glob("test_*.py")), ids=lambda file: file.stem)
def test_interpreted(file):
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(process.stdout[-4000:], process.stderr[-2000:])
    assert process.returncode == 0
