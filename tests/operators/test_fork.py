"""Operators after a fork, where libgomp would wait forever for the parent's threads."""

import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from harness.calls import one_of_each

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
SECONDS = 60  # a child that hangs is killed after this time


class Outputs(Dataset):
    """The outputs of every operator, computed on access."""

    def __init__(self) -> None:
        self.calls = [(call.function, call.leaves()) for call in one_of_each().values()]

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        with torch.no_grad():
            return [t for function, leaves in self.calls for t in function(**leaves).values()]


def same(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_process_computes_the_same_bits(threads):
    threads(3)
    outputs = Outputs()
    wanted = outputs[0]
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        os._exit(0 if same(outputs[0], wanted) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_workers_of_a_data_loader_compute(threads):
    """With one thread each, as PyTorch sets it."""
    threads(3)
    outputs = Outputs()
    outputs[0]
    found = list(DataLoader(outputs, batch_size=None, num_workers=2, timeout=SECONDS, multiprocessing_context="fork"))
    threads(1)
    assert len(found) == 2
    assert all(same(got, outputs[0]) for got in found)
