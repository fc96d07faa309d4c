"""Selects the implementation of a call.

`auto` takes the fastest backend for the tensors' device; `use_backend` and `MTLKIT_BACKEND` request one by name. A
requested backend that cannot run raises an error with the reason and the fix.
"""

import os
import re
from collections.abc import Callable, Collection
from importlib.util import find_spec
from types import TracebackType
from typing import NamedTuple

import torch

from mtlkit import _native

BACKENDS = {
    "reference": "the sequential formula in plain PyTorch: slow, and what every other backend is tested against",
    "torch": "vectorised plain PyTorch, on any device",
    "cpu": "C++ kernels for the CPU",
    "triton": "Triton kernels for GPUs",
    "cuda": "CUDA kernels for NVIDIA GPUs",
}

_FOR_NVIDIA = "it runs on NVIDIA GPUs, but this torch is built for AMD GPUs; use triton"
LEAST_CAPABILITY = (7, 5)  # of a GPU, that the CUDA kernels can be compiled for

_requested = os.environ.get("MTLKIT_BACKEND") or "auto"


class use_backend:  # noqa: N801 - reads as a verb, as torch.no_grad does
    """Selects one backend for every operator: from now on if called, inside the block if used in a `with` statement.

    The selection applies to the whole process, including all threads.

    Args:
        name: "reference", "torch", "cpu", "triton", "cuda", or "auto" for the fastest one that can run.

    Raises:
        ValueError: `name` is not a backend.

    Example:
        >>> import torch, mtlkit
        >>> x = torch.randn(1, 8, 8, 16)
        >>> with mtlkit.use_backend("reference"):
        ...     y = mtlkit.nn.SS2D(d_model=16)(x)
    """

    def __init__(self, name: str) -> None:
        global _requested
        _check_name(name, "name")
        self._before = _requested
        _requested = name

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        global _requested
        _requested = self._before


def _check_name(name: str, argument: str) -> None:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"{argument}: expected 'auto' or one of {', '.join(map(repr, BACKENDS))}, got {name!r}")


def choose(op: str, served: Collection[str], device: torch.device, limit: Callable[[str], str | None]) -> str:
    """The backend that runs a call.

    Args:
        op: name of the operator, for messages.
        served: the backends that implement the operator, fastest first.
        device: where the tensors are.
        limit: a function that says why a backend cannot run this particular call; it returns None if the backend can.

    Raises:
        ValueError: the requested backend cannot run the call.
        RuntimeError: the call is made under a transform of torch.func, such as vmap.
    """
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError(f"{op} does not support torch.vmap and other torch.func transforms; pass it the whole batch")
    if _requested == "auto":
        for name in served:
            if obstacle(name, device) is None and limit(name) is None:
                return name
    _check_name(_requested, "MTLKIT_BACKEND")
    if _requested in served:
        reason = obstacle(_requested, device) or limit(_requested)
    else:
        reason = f"it does not implement {op}; backends that do: {', '.join(served)}"
    if reason:
        raise ValueError(f"backend {_requested!r} was requested but cannot run {op}: {reason}")
    return _requested


def asked_for(name: str) -> bool:
    """Whether a backend is requested by name."""
    return _requested == name


def serves(name: str, device: torch.device) -> bool:
    """Whether the selected backend, or one that "auto" chooses, runs on a device, and no transform is active."""
    return (
        _requested in (name, "auto")
        and not torch._C._are_functorch_transforms_active()
        and obstacle(name, device) is None
    )


def obstacle(name: str, device: torch.device) -> str | None:
    """Why a backend cannot run on a device, and the fix, in a sentence; None if it can."""
    if name == "cpu":
        if device.type != "cpu":
            return f"it runs on the CPU, but the tensors are on {device}"
        if _native.C is None:
            return f"{_native.why_not}; reinstall with a C++ compiler available: pip install -e ."
    if name == "cuda":
        return _cuda_obstacle(device)
    if name == "triton":
        return _triton_obstacle(device)
    return None


def _cuda_obstacle(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"it runs on NVIDIA GPUs, but the tensors are on {device}"
    if torch.version.hip is not None:
        return _FOR_NVIDIA
    if _native.C is None or not _native.C.cuda:
        return "mtlkit was built without CUDA; reinstall with nvcc available: MTLKIT_CUDA=on pip install -e ."
    capability = torch.cuda.get_device_capability(device)
    if has_code(capability, _native.C.cuda_archs):
        return None
    have, least = (".".join(map(str, c)) for c in (capability, LEAST_CAPABILITY))
    gpu = f"{torch.cuda.get_device_name(device)} has {have}"
    if capability < LEAST_CAPABILITY:
        return f"it needs compute capability {least}, and {gpu}"
    fix = f"MTLKIT_CUDA=on MTLKIT_CUDA_ARCHS={''.join(map(str, capability))} pip install -e ."
    return f"it is compiled for {_native.C.cuda_archs}, and {gpu}; for that: {fix}"


def has_code(capability: tuple[int, int], archs: str) -> bool:
    """Whether a GPU runs kernels compiled for `archs`, for example "80, 90+PTX".

    Machine code runs on GPUs of the same major version and at least the same minor version; PTX, of the highest
    architecture, runs on all newer GPUs.
    """
    compiled = [divmod(int(arch), 10) for arch in re.findall(r"\d+", archs)]
    real = any(major == capability[0] and minor <= capability[1] for major, minor in compiled)
    return real or ("PTX" in archs and capability >= max(compiled))


def _triton_obstacle(device: torch.device) -> str | None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # then kernels run on the CPU, for tests
    if device.type != "cuda" and not interpreted:
        return f"it runs on GPUs, but the tensors are on {device}"
    if find_spec("triton") is None:
        return "the package triton is not installed; pip install triton"
    return None


class BackendState(NamedTuple):
    """One line of `mtlkit info`: a backend, whether it is active here, why or why not, and what to do about it."""

    name: str
    active: bool
    detail: str
    fix: str


def describe() -> list[BackendState]:
    """The state of every backend on this machine."""
    states = [BackendState(name, True, BACKENDS[name], "") for name in ("reference", "torch")]
    if _native.C is not None:
        detail = f"{BACKENDS['cpu']}, {_native.C.cpu_isa()}, {torch.get_num_threads()} threads"
        states.append(BackendState("cpu", True, detail, ""))
    else:
        states.append(
            BackendState("cpu", False, f"{_native.why_not}", "pip install -e . where there is a C++ compiler")
        )
    gpu = torch.cuda.is_available()
    if find_spec("triton") is None:
        states.append(BackendState("triton", False, "the package triton is not installed", "pip install triton"))
    elif not gpu:
        states.append(BackendState("triton", False, "torch finds no GPU", "check the driver, and that torch has CUDA"))
    else:
        states.append(BackendState("triton", True, BACKENDS["triton"], ""))
    if torch.version.hip is not None:
        states.append(BackendState("cuda", False, _FOR_NVIDIA, ""))
    elif _native.C is None or not _native.C.cuda:
        states.append(
            BackendState("cuda", False, "built without CUDA", "MTLKIT_CUDA=on pip install -e . where nvcc is")
        )
    elif not gpu:
        detail = f"built for {_native.C.cuda_archs}, but torch finds no GPU"
        states.append(BackendState("cuda", False, detail, "check the driver, and that torch has CUDA"))
    else:
        obstacle = _cuda_obstacle(torch.device("cuda", torch.cuda.current_device()))
        detail = f"{BACKENDS['cuda']}, built for {_native.C.cuda_archs}"
        states.append(BackendState("cuda", obstacle is None, obstacle or detail, ""))
    return states
