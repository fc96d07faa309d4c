"""Tests that run Triton's kernels in its interpreter, on the CPU.

Triton decides at import whether it interprets, hence these tests need a process of their own, with TRITON_INTERPRET=1:
tests/kernels/test_interpreted.py starts it. Elsewhere nothing here is collected.
"""

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_*.py"]


@pytest.fixture(autouse=True, scope="session")
def _patch_once():
    """For speed alone: the interpreter patches Triton's language anew in every call of a device function."""
    from triton.runtime import interpreter

    patch, run, patched = interpreter._patch_lang, interpreter.InterpretedFunction.run, {}

    def patch_once(function):
        key = id(function.__globals__)
        if key not in patched:
            patched[key] = patch(function)
        return patched[key]

    def launch(self, *args, **options):
        patched.clear()
        return run(self, *args, **options)

    interpreter._patch_lang, interpreter.InterpretedFunction.run = patch_once, launch


@pytest.fixture(autouse=True)
def _poisoned(poisoned: None) -> None:
    """In every test."""
