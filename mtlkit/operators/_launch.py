"""How backends call `mtlkit._C`: tensors become addresses and strides, status codes become exceptions."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import overload

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit._check import INDICES

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

# The same values as in csrc/common/ss2d.h and csrc/cpu/scan.h: how many tokens lie between two states saved for the #
# backward pass, and the maximal number of states.
CHECKPOINT_TOKENS = 32
MAX_STATES = 256

_TOKEN_OUT_OF_RANGE = 2  # as csrc/cpu/kernels.h has it

LARGE_BLOCK = 8 << 20  # bytes


Argument = tuple[int, int, tuple[int, ...]]


@overload
def argument(tensor: Tensor) -> Argument: ...
@overload
def argument(tensor: Tensor | None) -> Argument | None: ...
def argument(tensor: Tensor | None) -> Argument | None:
    """Address, dtype and strides in elements."""
    return None if tensor is None else (tensor.data_ptr(), _DTYPES[tensor.dtype], tensor.stride())


def address(tensor: Tensor | None) -> int:
    """The address of a tensor that is contiguous and in the dtype of the computation.

    It is 0 for None and, as in PyTorch, for a tensor without elements.
    """
    return 0 if tensor is None else tensor.data_ptr()


def check(status: int) -> None:
    """Raises the exception that the status of a CPU function stands for.

    Raises:
        MemoryError: the scratch buffers could not be allocated.
        ValueError: an order visits a token that does not exist.
    """
    if status:
        kind = ValueError if status == _TOKEN_OUT_OF_RANGE else MemoryError
        raise kind(f"mtlkit: {_native.C.error_string(status)}")


@cache
def gpu(device: torch.device) -> tuple[int, int]:
    """What launch plans depend on: a GPU's number of multiprocessors, and its shared memory per block in bytes."""
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, properties.shared_memory_per_block_optin


@contextmanager
def launching(tensor: Tensor) -> Iterator[int]:
    """Makes the tensor's GPU the current one and returns the address of its current stream; 0 for a CPU tensor."""
    if tensor.device.type != "cuda":
        yield 0
        return
    with torch.cuda.device(tensor.device):
        yield torch.cuda.current_stream(tensor.device).cuda_stream


def check_cuda(status: int) -> None:
    """Raises an error if a CUDA launcher failed.

    Raises:
        RuntimeError: the launch failed; the message contains CUDA's own.
    """
    if status:
        raise RuntimeError(f"mtlkit: CUDA error {status}: {_native.C.cuda_error_string(status)}")


def as_float(tensor: Tensor) -> Tensor:
    """A parameter as the CUDA kernels read it: float32, contiguous; copied only if needed."""
    return tensor.to(torch.float32).contiguous()


def as_int32(indices: Tensor | None) -> Tensor | None:
    """Indices as the kernels take them, contiguous; other types are returned for the shape rule to reject."""
    if isinstance(indices, Tensor) and indices.dtype in INDICES:
        return indices.to(torch.int32).contiguous()
    return indices


def aligned(tensor: Tensor, size: int = 16) -> Tensor:
    """The tensor, contiguous and aligned to `size` bytes; copied only if needed."""
    return tensor if tensor.data_ptr() % size == 0 else tensor.clone()


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype of the computation: float64 if any tensor is float64, otherwise float32."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32


def single_precision_only(tensors: Iterable[Tensor | None]) -> str | None:
    """Why the GPU kernels cannot take these tensors: none of them may be float64."""
    if any(t is not None and t.dtype == torch.float64 for t in tensors):
        return "it computes in float32, but a tensor is float64"
    return None


def few_states(states: int) -> str | None:
    """Why the scan kernels cannot run with this many states."""
    return None if states <= MAX_STATES else f"it supports at most {MAX_STATES} states, got {states}"


def fresh(tensor: Tensor) -> Tensor:
    """The tensor, just allocated and not written yet; if it is large and on the CPU, it gets huge pages.

    The allocator requests large blocks from the system at every call, and page faults of small pages would then cost
    more than a pass over the map.
    """
    if tensor.nbytes >= LARGE_BLOCK and tensor.device.type == "cpu":
        _native.C.prefer_large_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def computed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor, contiguous and in the dtype of the computation; copied only if needed."""
    plain = tensor.dtype == dtype and tensor.is_contiguous()
    return tensor if plain else tensor.to(dtype).contiguous()
