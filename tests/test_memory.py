"""Detecting out-of-memory errors of torch and numpy."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from mtlkit._memory import loader_killed, out_of_memory


class _Hungry(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> np.ndarray:
        return np.empty(2**55, np.uint8)


@pytest.mark.parametrize("allocate", [lambda: torch.empty(2**50), lambda: np.empty(2**55), lambda: bytearray(2**60)])
def test_of_the_cpu(allocate):
    with pytest.raises((MemoryError, RuntimeError)) as error:
        allocate()
    assert out_of_memory(error.value)


def test_of_a_process_that_loads_data():
    with pytest.raises((MemoryError, RuntimeError)) as error:
        next(iter(DataLoader(_Hungry(), num_workers=1)))
    assert out_of_memory(error.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ..."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_of_gpus_and_of_the_system(error):
    assert out_of_memory(error)


def test_nothing_else():
    for error in (RuntimeError("shapes differ"), ValueError("out of memory"), KeyError("MemoryError")):
        assert not out_of_memory(error)
        assert not loader_killed(error)
    assert loader_killed(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
    assert not loader_killed(RuntimeError("DataLoader worker (pid 7) is killed by signal: Segmentation fault. "))
