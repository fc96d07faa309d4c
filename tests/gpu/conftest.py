"""Shared by tests on a GPU. Without a GPU, tests/conftest.py skips them; `make gpu` reports a failure."""

from collections.abc import Iterator

import pytest
import torch

import mtlkit


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend in turn, selected explicitly, so that a call that it does not support fails and names the fix."""
    if request.param == "cuda" and torch.version.hip is not None:
        pytest.skip("the CUDA kernels are for NVIDIA GPUs")
    with mtlkit.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's float32 convolutions and products in full precision, without TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fills uninitialised memory with NaN, as torch does in its deterministic mode."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
