"""Runs code that was written for a GPU on a machine without one."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DEVICE = torch.cuda.device
_IGNORED = ("set_device", "synchronize")  # functions of torch.cuda that raise without a driver


class _AnyDevice(_DEVICE):
    """`torch.cuda.device` that does nothing for a CPU instead of raising."""

    def __init__(self, device: Any) -> None:
        on_cpu = isinstance(device, (str, torch.device)) and torch.device(device).type == "cpu"
        super().__init__(-1 if on_cpu or device is None else device)


class _NoDevice(_DEVICE):
    """`torch.cuda.device` that does nothing."""

    def __init__(self, device: Any) -> None:
        super().__init__(-1)


def allow_cpu_contexts(allow: bool) -> None:
    """Makes `with torch.cuda.device(x.device)` work for an x on the CPU if torch sees no GPU, or undoes that."""
    if not torch.cuda.is_available():
        torch.cuda.device = _AnyDevice if allow else _DEVICE  # pyright: ignore[reportAttributeAccessIssue]


class _OnCPU(TorchFunctionMode):
    """Replaces CUDA devices in the arguments of torch functions by the CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to and len(args) > 1 and type(args[1]) is int:
            args = (args[0], "cpu", *args[2:])
        return func(*map(_on_cpu, args), **{name: _on_cpu(value) for name, value in (kwargs or {}).items()})


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == "cuda" else value
    return "cpu" if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


@contextmanager
def cuda_on_cpu() -> Iterator[None]:
    """Redirects CUDA devices to the CPU in this thread if torch sees no GPU; otherwise does nothing.

    `.cuda()`, `.to("cuda")`, `device="cuda"`, `torch.load` of files saved on a GPU, `torch.cuda.device`,
    `torch.cuda.set_device` and `torch.cuda.synchronize` are covered. Triton kernels that are defined inside the block
    run in Triton's interpreter, which is slow. Each torch call takes a few microseconds more.

    Example:
        >>> import torch, mtlkit
        >>> with mtlkit.compat.cuda_on_cpu():
        ...     x = torch.ones(2, 3, device="cuda").cuda()
        >>> x.sum().item()
        6.0
    """
    if torch.cuda.is_available():
        yield
        return
    interpreted = os.environ.get("TRITON_INTERPRET")
    load, kept = torch.load, {name: getattr(torch.cuda, name) for name in _IGNORED}

    def load_to_cpu(file: Any, map_location: Any = None, *arguments: Any, **options: Any) -> Any:
        return load(file, "cpu" if map_location is None else _on_cpu(map_location), *arguments, **options)

    device = torch.cuda.device
    torch.cuda.device = _NoDevice  # pyright: ignore[reportAttributeAccessIssue]
    torch.load = load_to_cpu
    os.environ.setdefault("TRITON_INTERPRET", "1")
    for name in _IGNORED:
        setattr(torch.cuda, name, lambda *_: None)
    try:
        with _OnCPU():
            yield
    finally:
        torch.load = load
        if interpreted is None:
            os.environ.pop("TRITON_INTERPRET", None)
        torch.cuda.device = device  # pyright: ignore[reportAttributeAccessIssue]
        for name, function in kept.items():
            setattr(torch.cuda, name, function)
