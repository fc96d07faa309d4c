"""Tests that run Triton's kernels in its interpreter, on the CPU.

Triton decides at import whether it interprets, hence these tests need a process of their own, with TRITON_INTERPRET=1:
tests/kernels/test_interpreted.py starts it. Elsewhere nothing here is collected.
"""

import os

import pytest
import torch

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
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fills whatever is allocated unset with NaN, so that an element that a kernel forgets shows."""

    def poison(allocate):
        def poisoned_allocate(*args, **options):
            tensor = allocate(*args, **options)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return poisoned_allocate

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
