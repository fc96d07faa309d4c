"""Calls of an operator whose inputs are a list, of which some may be None, and the check of its CPU kernel."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import mtlkit
from mtlkit.testing import assert_accurate


def run(op: Callable[..., Tensor], names: Sequence[str], backend: str, inputs: list[Tensor | None], dy: Tensor):
    """Output and gradients by name."""
    inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
    with mtlkit.use_backend(backend):
        y = op(*inputs)
    given = {name: t for name, t in zip(names, inputs, strict=True) if t is not None}
    gradients = torch.autograd.grad(y, list(given.values()), dy)
    return {"y": y, **{f"d{name}": g for name, g in zip(given, gradients, strict=True)}}


def check(op: Callable[..., Tensor], names: Sequence[str], inputs: list[Tensor | None], dy: Tensor):
    """What the kernel gives, held against the reference."""
    got = run(op, names, "cpu", inputs, dy)
    exact = run(op, names, "reference", [None if t is None else t.double() for t in inputs], dy.double())
    plain = run(op, names, "torch", inputs, dy) if inputs[0].dtype in (torch.bfloat16, torch.float16) else exact
    assert got.keys() == exact.keys()
    for name, value in got.items():
        assert value.dtype == inputs[0].dtype
        assert_accurate(name, value, exact[name], plain[name], gradient=name != "y")
    return got
