"""Puts the CUDA kernels, compiled for the host (see cuda_on_host.h), where mtlkit looks for mtlkit._C."""

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
    """The module of all CUDA kernels, run on the host; their orders differ from call to call, the same in each run."""
    return build_kernels()


@pytest.fixture
def on_host(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Has backend "cuda" serve tensors on the CPU. A call of it sets the GPU's size that launches are planned for."""
    plan_for = serve(kernels, monkeypatch)
    with mtlkit.use_backend("cuda"):
        yield plan_for
