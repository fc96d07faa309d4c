"""Which threads the kernels use: PyTorch's OpenMP, the only one in the process, or their own pool."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.calls import one_of_each
from mtlkit import _native

pytestmark = pytest.mark.skipif(_native.C is None, reason="mtlkit._C is not built")
LINUX = Path("/proc/self/maps")
SECONDS = 20  # a child that hangs is killed after this time

# The libgomp file (or equivalent) that is loaded in a fresh process after importing torch and scanning on two threads.
ONE_OPENMP = """
import torch
torch.set_num_threads(2)
import mtlkit
from mtlkit import _native
with mtlkit.use_backend("cpu"):
    mtlkit.selective_scan_fn(*(torch.rand(2, 8, 9) for _ in range(2)), -torch.rand(8, 4), *torch.rand(2, 2, 4, 9))
files = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
loaded = [file for file in files if file.rpartition("/")[2].startswith(("libgomp", "libomp", "libiomp"))]
assert [_native.C.openmp()] == loaded, (_native.C.openmp(), loaded)
"""


@pytest.fixture
def own_pool() -> Iterator[None]:
    _native.C.use_openmp(False)
    yield
    _native.C.use_openmp(True)


@pytest.fixture(scope="module")
def calls() -> list:
    return [(call.function, call.leaves()) for call in one_of_each().values()]


def computed(calls: list) -> list[torch.Tensor]:
    with torch.no_grad():
        return [t for function, leaves in calls for t in function(**leaves).values()]


@pytest.mark.skipif(not LINUX.exists(), reason="this system does not list a process's libraries")
def test_a_process_has_one_openmp(run_python):
    process = run_python("-c", ONE_OPENMP)
    assert process.returncode == 0, process.stderr


def test_without_torch_there_is_none(run_python):
    process = run_python("-c", "import mtlkit._C as C; print(repr(C.openmp()))")
    assert (process.stdout, process.returncode) == ("''\n", 0), process.stderr


def test_a_pool_of_its_own_computes_the_same_bits(threads, calls, request):
    threads(3)
    wanted = computed(calls)
    request.getfixturevalue("own_pool")
    assert _native.C.openmp() == ""
    assert all(torch.equal(a, b) for a, b in zip(computed(calls), wanted, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_fork_of_a_process_with_a_pool_computes_and_ends(own_pool, threads, calls):
    threads(3)
    wanted = computed(calls)
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        os._exit(0 if all(torch.equal(a, b) for a, b in zip(computed(calls), wanted, strict=True)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
