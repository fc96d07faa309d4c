"""Operators keep the dispatcher's rules with CUDA kernels: schema, fake kernel, gradients, results apart in memory."""

import pytest
import torch

from mtlkit.testing import SelectiveScanShape, SS2DShape


def arguments(name: str) -> tuple:
    if name == "ss2d":
        return (*SS2DShape(2, 5, 3, 4, 8, 2).inputs(requires_grad=True).values(), torch.float32, True)
    if name == "selective_scan":
        return (*SelectiveScanShape(2, 6, 9, 4).inputs(requires_grad=True).values(), True, True)
    shapes = {"norm_gate": [(3, 6), (6,), (6,), (3, 6)], "dwconv_silu": [(2, 6, 4, 5), (6, 1, 3, 3), (6,)]}[name]
    tensors = tuple(torch.randn(shape, requires_grad=True) for shape in shapes)
    return (*tensors, 1e-5) if name == "norm_gate" else tensors


@pytest.mark.parametrize("name", ["ss2d", "selective_scan", "norm_gate", "dwconv_silu"])
def test_opcheck(on_host, name):
    operator = getattr(torch.ops.mtlkit, name).default
    torch.library.opcheck(operator, ("cuda", *arguments(name)))
