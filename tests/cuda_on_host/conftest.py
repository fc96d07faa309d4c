"""Provides CUDA kernels compiled for the host (see cuda_on_host.h) as part of mtlkit._C."""

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

import mtlkit
from harness.cuda_on_host import build_executor_checks, build_kernels, serve


@pytest.fixture(scope="session")
def executor_checks() -> ModuleType:
    """The small kernels of executor_checks.cpp."""
    return build_executor_checks()


@pytest.fixture(scope="session")
def kernels() -> ModuleType:
    """The module of all CUDA kernels, run on the host; execution orders differ between calls, but not between runs."""
    return build_kernels()


@pytest.fixture
def on_host(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Makes backend "cuda" accept CPU tensors. Calling it sets the GPU's size, for which launches are planned."""
    plan_for = serve(kernels, monkeypatch)
    with mtlkit.use_backend("cuda"):
        yield plan_for
