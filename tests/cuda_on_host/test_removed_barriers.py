"""Tests the tests: removing a barrier, or a wait for a copy, from a kernel changes the result or is reported."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtlkit.operators._launch import address, argument
from mtlkit.ops import causal_conv1d, selective_scan, ss2d, task_interaction
from mtlkit.testing import InteractionShape, SelectiveScanShape, SS2DShape

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
    """Raises unless run(), a launch that returns its status and results, reveals that the line was removed."""
    status, right = run()
    assert not status
    assert all(t.isfinite().all() for t in right)
    try:
        kernels.leave_out(line)
        for seed in range(SEEDS):
            kernels.seed(seed)
            status, got = run()
            if status or not all(map(torch.equal, got, right)):
                return
    finally:
        kernels.leave_out(0)
    raise AssertionError(f"nothing changes without line {line}")


@pytest.mark.parametrize("line", calls("norm_gate/bwd.cu"))
def test_norm_gate_backward(kernels, line):
    shapes = [(100, 96), (7, 301)]  # a kernel that keeps rows in registers, and the one for any number of channels
    inputs = [(torch.randn(shape), torch.rand(shape[1]), torch.randn(shape)) for shape in shapes]

    def run():
        status, results = 0, []
        for x, weight, dout in inputs:
            dx, partials = torch.full_like(x, float("nan")), torch.full((2, 2, x.shape[1]), float("nan"))
            status = status or kernels.cuda_norm_gate_backward(
                sizes=x.shape,
                x=argument(x),
                weight=address(weight),
                bias=0,
                z=None,
                eps=1e-5,
                dout=argument(dout),
                dx=argument(dx),
                dz=None,
                partials=address(partials),
                blocks=2,
                stream=0,
            )
            results += [dx, partials]
        return status, results

    assert_missed(kernels, line, run)


@pytest.mark.parametrize("line", calls("dwconv_silu/bwd.cu"))
def test_dwconv_silu_backward(kernels, line):
    x, dy = (torch.randn(2, 5, 40, 16).permute(0, 3, 1, 2) for _ in range(2))
    weight = torch.randn(16, 3, 3)

    def run():
        dx, partials = torch.full_like(x, float("nan")), torch.full((2, 16, 10), float("nan"))
        status = kernels.cuda_dwconv_silu_backward(
            sizes=x.shape,
            x=argument(x),
            weight=address(weight),
            bias=0,
            dy=argument(dy),
            dx=argument(dx),
            partials=address(partials),
            parts=2,
            stream=0,
        )
        return status, [dx, partials]

    assert_missed(kernels, line, run)


@pytest.mark.parametrize("line", calls("causal_conv1d/causal_conv1d.cu"))
def test_causal_conv1d_backward(on_host, kernels, line):
    inputs = {"x": torch.randn(2, 300, 16).transpose(1, 2), "weight": torch.randn(16, 4)}
    inputs = {name: t.requires_grad_() for name, t in inputs.items()}
    scan = partial(causal_conv1d, activation="silu")
    assert_missed(kernels, line, lambda: forward_and_backward(on_host, scan, inputs))


@pytest.mark.parametrize("line", calls("scan.cuh", "ss2d/ss2d.cuh", "ss2d/fwd.cu", "ss2d/bwd.cu"))
def test_ss2d(on_host, kernels, line):
    shape = SS2DShape(1, 20, 17, 23, 16, 2)  # an odd number of tiles: opposite directions meet in the middle one
    inputs = {name: t.requires_grad_() for name, t in shape.inputs().items()}
    assert_missed(kernels, line, lambda: forward_and_backward(on_host, ss2d, inputs))


@pytest.mark.parametrize(
    "line", calls("scan.cuh", "selective_scan/selective_scan.cuh", "selective_scan/fwd.cu", "selective_scan/bwd.cu")
)
def test_selective_scan(on_host, kernels, line):
    scan = partial(selective_scan, delta_softplus=True)
    calls = [
        {name: t.requires_grad_() for name, t in SelectiveScanShape(1, 20, 399, 16, G=groups).inputs().items()}
        for groups in (1, 0)  # B and C vary, or are constant
    ]

    def run():
        errors, results = zip(*(forward_and_backward(on_host, scan, inputs) for inputs in calls), strict=True)
        return "".join(errors), [t for some in results for t in some]

    assert_missed(kernels, line, run)


INTERACTION = ("tile.cuh", "project.cu", "reduce_bwd.cu", "scale.cu", "gating_bwd.cu")


@pytest.mark.parametrize("line", calls(*(f"interaction/{name}" for name in INTERACTION)))
def test_task_interaction(on_host, kernels, line):
    """Three signals with attention, and two without it, channels-last: every kernel, and two steps along its depth."""
    levels = {
        signals: InteractionShape(9, 70, 5, 13, 9, signals, attention).inputs(requires_grad=True)
        for signals, attention in (("alignment", True), ("variance", False))
    }
    last = levels["variance"].x.detach().to(memory_format=torch.channels_last).requires_grad_()
    levels["variance"] = levels["variance"]._replace(x=last)

    def run():
        results = []
        for signals, level in levels.items():
            try:
                out = task_interaction(*level, signals=signals)
                given = [t for t in (level.x, level.f, *level.tim, *level.upa) if t is not None and t.requires_grad]
                results += [out.seg, *torch.autograd.grad(out.seg.square().sum() + out.clf.sum(), given)]
            except RuntimeError as error:
                return str(error), results
        return "", results

    assert_missed(kernels, line, run)


def forward_and_backward(on_host, op, inputs: dict[str, Tensor]) -> tuple[str, list[Tensor]]:
    """The error and the results of a call in one piece, and of one that is split into chunks."""
    results = []
    for multiprocessors in (1, 40):
        on_host(multiprocessors)
        try:
            y = op(**inputs)
            results += [y, *torch.autograd.grad(y.square().sum(), list(inputs.values()))]
        except RuntimeError as error:
            return str(error), results
    return "", results
