"""Tests that run Triton's kernels in its interpreter, on the CPU.

tests/kernels/test_interpreted.py starts the processes that they need. Elsewhere nothing here is collected.
"""

import pytest

from harness.interpreter import INTERPRETED, patch_once

collect_ignore_glob = [] if INTERPRETED else ["*test_*.py"]


@pytest.fixture(autouse=True, scope="session")
def _patch_once() -> None:
    patch_once()


@pytest.fixture(autouse=True)
def _poisoned(poisoned: None) -> None:
    """In every test."""
