"""Triton's interpreter, which runs kernels on the CPU.

Triton decides at import whether it interprets, so these tests run in processes of their own: `run_tests` starts one,
with TRITON_INTERPRET=1 set.
"""

import os
import subprocess
import sys
from pathlib import Path

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def run_tests(*arguments: str | Path) -> subprocess.CompletedProcess:
    """Runs pytest with these arguments where Triton interprets."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def patch_once() -> None:
    """Has the interpreter patch Triton's language once a launch, for speed: it does so in every device function."""
    from triton.runtime import interpreter

    patch, run, patched = interpreter._patch_lang, interpreter.InterpretedFunction.run, {}

    def patch_first(function):
        key = id(function.__globals__)
        if key not in patched:
            patched[key] = patch(function)
        return patched[key]

    def launch(self, *args, **options):
        patched.clear()
        return run(self, *args, **options)

    interpreter._patch_lang, interpreter.InterpretedFunction.run = patch_first, launch
