"""Puts the CUDA kernels, compiled for the host (see cuda_on_host.h), where mtlkit looks for mtlkit._C."""

from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace

import pytest

import mtlkit
from harness.cuda_on_host import build_executor_checks, build_kernels
from mtlkit import _native
from mtlkit.operators import _backends, _launch


@pytest.fixture(scope="session")
def executor_checks() -> ModuleType:
    """The small kernels of executor_checks.cpp."""
    return build_executor_checks()


@pytest.fixture(scope="session")
def kernels() -> ModuleType:
    """The module of all CUDA kernels, run on the host; their orders differ from call to call, the same in each run."""
    return build_kernels()


def as_native(kernels: ModuleType) -> SimpleNamespace:
    """mtlkit._C as it would be with these kernels; the stream is 0, tensors lie on the CPU."""
    return SimpleNamespace(**(vars(_native.C) if _native.C else {}) | vars(kernels) | {"cuda": True})


@pytest.fixture
def on_host(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Has backend "cuda" serve tensors on the CPU. A call of it sets the GPU's size that launches are planned for."""

    def plan_for(multiprocessors: int, shared_bytes: int = 227 << 10) -> None:
        monkeypatch.setattr(_launch, "gpu", lambda device: (multiprocessors, shared_bytes))

    kernels.seed(0)
    monkeypatch.setattr(_native, "C", as_native(kernels))
    monkeypatch.setattr(_backends, "_cuda_obstacle", lambda device: None)
    plan_for(1)
    with mtlkit.use_backend("cuda"):
        yield plan_for
