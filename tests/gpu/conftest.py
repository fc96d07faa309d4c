"""What the tests on a GPU share. Without one, tests/conftest.py skips them; `make gpu` fails there."""

from collections.abc import Iterator

import pytest
import torch

import mtlkit


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend in turn, asked for, so that a call that it cannot serve fails and names the fix."""
    if request.param == "cuda" and torch.version.hip is not None:
        pytest.skip("the CUDA kernels are for NVIDIA GPUs")
    with mtlkit.use_backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions and products of PyTorch's own in float32, not in TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fills whatever is allocated unset with NaN: in its deterministic mode torch does so itself."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
