"""Tests the fences of the tests: without them, a read outside a tensor would not be detected."""

import ctypes
import faulthandler
import os

import pytest
import torch

from harness.fence import after_a_fence, before_a_fence


@pytest.mark.parametrize(("place", "outside"), [(before_a_fence, 7), (after_a_fence, -1)])
def test_a_read_beside_a_tensor_ends_the_process(place, outside):
    fenced = place(torch.arange(7.0))
    assert torch.equal(fenced, torch.arange(7.0))
    process = os.fork()
    if process == 0:
        faulthandler.disable()
        os._exit(ctypes.c_float.from_address(fenced.data_ptr() + outside * fenced.element_size()).value == 0.5)
    assert os.WIFSIGNALED(os.waitpid(process, 0)[1])
