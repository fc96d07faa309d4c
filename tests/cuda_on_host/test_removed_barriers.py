"""A test of the tests: a barrier, or a wait for a copy, left out of a kernel changes the result or is reported."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtlkit.ops import ss2d
from mtlkit.ops._native_call import address, argument
from mtlkit.testing import SS2DShape

CUDA = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
CALL = re.compile(r"\b(block_sync|copy_async_wait)\(\);")
SEEDS = 5


def calls(*files: str) -> list:
    """Name of the call, file and line of each barrier and wait."""
    return [
        pytest.param(number, id=f"{name}:{number}-{CALL.search(line)[1]}")
        for name in files
        for number, line in enumerate((CUDA / name).read_text().splitlines(), 1)
        if CALL.search(line)
    ]


def assert_missed(kernels, line: int, run) -> None:
    """Raises unless run(), a launch that answers with its status and its results, shows that the line was left out."""
    status, right = run()
    assert not status
    try:
        kernels.leave_out(line)
        for seed in range(SEEDS):
            kernels.seed(seed)
            status, got = run()
            if status or not same(got, right):
                return
    finally:
        kernels.leave_out(0)
    raise AssertionError(f"nothing changes without line {line}")


def same(got: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(1e9), b.nan_to_num(1e9)) for a, b in zip(got, right, strict=True))


@pytest.mark.parametrize("line", calls("norm_gate_bwd.cu"))
def test_norm_gate_backward(kernels, line):
    shapes = [(100, 96), (7, 301)]  # a kernel that holds rows in registers, and the one for any number of channels
    inputs = [(torch.randn(shape), torch.rand(shape[1]), torch.randn(shape)) for shape in shapes]

    def run():
        status, results = 0, []
        for x, weight, dout in inputs:
            dx, partials = torch.full_like(x, float("nan")), torch.full((2, 2, x.shape[1]), float("nan"))
            arguments = (argument(x), argument(weight), None, None, None)
            outputs = (argument(dout), argument(dx), None, address(partials), 2)
            status = status or kernels.cuda_norm_gate_backward(*x.shape, arguments, 1e-5, 0, *outputs)
            results += [dx, partials]
        return status, results

    assert_missed(kernels, line, run)


@pytest.mark.parametrize("line", calls("dwconv_silu_bwd.cu"))
def test_dwconv_silu_backward(kernels, line):
    x, dy = (torch.randn(2, 5, 40, 16).permute(0, 3, 1, 2) for _ in range(2))
    weight = torch.randn(16, 3, 3)

    def run():
        dx, partials = torch.full_like(x, float("nan")), torch.full((2, 16, 10), float("nan"))
        outputs = (argument(dy), argument(dx), address(partials), 2)
        inputs = (argument(x), argument(weight), None)
        return kernels.cuda_dwconv_silu_backward(tuple(x.shape), inputs, 0, *outputs), [dx, partials]

    assert_missed(kernels, line, run)


@pytest.mark.parametrize("line", calls("scan.cuh", "ss2d.cuh", "ss2d_fwd.cu", "ss2d_bwd.cu"))
def test_ss2d(on_host, kernels, line):
    shape = SS2DShape(1, 20, 17, 23, 16, 2)  # an odd number of tiles: in the middle one, opposite directions meet
    inputs = {name: t.requires_grad_() for name, t in shape.inputs().items()}
    dy = torch.randn(inputs["u"].shape)

    def run():
        results = []
        for multiprocessors in (1, 40):  # in one piece, and split into chunks
            on_host(multiprocessors)
            try:
                y = ss2d(**inputs)
                results += [y, *torch.autograd.grad(y, list(inputs.values()), dy)]
            except RuntimeError as error:
                return str(error), results
        return "", results

    assert_missed(kernels, line, run)
