"""Runs Triton kernels in its interpreter on the CPU.

tests/kernels/test_interpreted.py starts the processes for these tests. Other processes do not collect them.
"""

import pytest

from harness.interpreter import INTERPRETED, patch_once

collect_ignore_glob = [] if INTERPRETED else ["*test_*.py"]


@pytest.fixture(autouse=True, scope="session")
def _patch_once() -> None:
    patch_once()


@pytest.fixture(autouse=True)
def _poisoned(poisoned: None) -> None:
    """Active in every test."""
