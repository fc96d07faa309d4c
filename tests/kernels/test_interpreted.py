"""Runs the tests of interpreted kernels, each file in a separate process: see interpreted/conftest.py."""

from pathlib import Path

import pytest

from harness.interpreter import run_tests

pytest.importorskip("triton", reason="torch brings no Triton on this platform")

FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(FOLDER.rglob("test_*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_interpreted(file):
    process = run_tests(file)
    print(process.stdout[-4000:], process.stderr[-2000:])
    assert process.returncode == 0
