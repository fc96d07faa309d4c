"""Triton's interpreter, which runs kernels on the CPU.

Triton decides at import whether it interprets, so these tests run in separate processes: `run_tests` starts one
with TRITON_INTERPRET=1.
"""

import os
import subprocess
import sys
from pathlib import Path

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def run_tests(*arguments: str | Path) -> subprocess.CompletedProcess:
    """Runs pytest with these arguments and Triton's interpreter."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def patch_once() -> None:
    """Makes the interpreter patch Triton's language only once per launch, and multiply bfloat16 values correctly.

    Without this, it patches the language in every device function, which is slow, and `tl.dot` multiplies the bits of
    bfloat16 as integers, because NumPy has no bfloat16.
    """
    from triton.runtime import interpreter

    dot = interpreter.InterpreterBuilder.create_dot

    def dot_of_numbers(self, a, b, *others):
        return dot(self, _widened(a), _widened(b), *others)

    interpreter.InterpreterBuilder.create_dot = dot_of_numbers
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


def _widened(handle):
    """A block of bfloat16 as float32; other blocks unchanged."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
