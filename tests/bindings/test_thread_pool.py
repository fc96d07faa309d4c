"""The libraries' thread pool under ThreadSanitizer: several callers, and pools that are created and destroyed."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
COMPILER = shlex.split(os.environ.get("CXX", "c++"))


def test_has_no_race(tmp_path):
    if shutil.which(COMPILER[0]) is None:
        pytest.skip(f"{COMPILER[0]} is not installed")
    library = subprocess.run([*COMPILER, "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True)
    if not Path(library.stdout.strip()).is_absolute():
        pytest.skip(f"{COMPILER[0]} brings no ThreadSanitizer")
    program, sources = tmp_path / "thread_pool", (HERE / "thread_pool.cpp", CSRC / "cpu" / "thread_pool.cpp")
    options = ("-std=c++17", "-O1", "-g1", "-pthread", "-fsanitize=thread")
    subprocess.run([*COMPILER, *options, "-I", CSRC, *sources, "-o", program], check=True)
    process = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (process.stdout, process.returncode) == ("0 wrong\n", 0), process.stderr
