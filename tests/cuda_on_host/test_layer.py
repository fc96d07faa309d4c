"""The SS2D layer on CUDA kernels: without gradients, norm_gate adds the scan's two maps when it reads them."""

import copy

import pytest
import torch

import mtlkit
from mtlkit import _native
from mtlkit.nn import SS2D
from mtlkit.testing import assert_accurate

FORMS = {"gated": {}, "without_gate": {"gate": None}, "linear_gate": {"gate": "linear"}, "out_act": {"out_act": True}}


@pytest.fixture
def sums(on_host, monkeypatch) -> list[bool]:
    """For each call of norm_gate's forward kernel, whether it adds two maps."""
    found, forward = [], _native.C.cuda_norm_gate_forward

    def spy(*, addend, **arguments) -> int:
        found.append(addend is not None)
        return forward(addend=addend, **arguments)

    monkeypatch.setattr(_native.C, "cuda_norm_gate_forward", spy)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_inference(sums, form, dtype):
    layer = SS2D(d_model=10, d_state=4, dtype=dtype, **FORMS[form])
    x = torch.randn(2, 5, 7, 10).to(dtype)
    trained = layer(x)
    with torch.no_grad():
        got = layer(x)
    assert sums == [False, True]
    if dtype != torch.bfloat16:  # training in bfloat16 rounds the sum
        assert torch.equal(got, trained)
    with torch.no_grad(), mtlkit.use_backend("reference"):
        exact = copy.deepcopy(layer).double()(x.double())
    with torch.no_grad(), mtlkit.use_backend("torch"):
        plain = layer(x)
    assert_accurate("y", got, exact, plain)


def test_frozen_parameters_leave_the_gradient_of_the_input(sums):
    layer = SS2D(d_model=8, d_state=4).requires_grad_(False)
    x = torch.randn(1, 4, 5, 8, requires_grad=True)
    layer(x).sum().backward()
    assert sums == [False]
    assert x.grad.abs().max() > 0


@torch.no_grad()
def test_no_images(sums):
    assert SS2D(d_model=8)(torch.ones(0, 4, 5, 8)).shape == (0, 4, 5, 8)
    assert sums == []


@torch.no_grad()
def test_what_does_not_fit_is_named(sums):
    layer = SS2D(d_model=8)
    layer.out_norm.weight = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="weight: expected"):
        layer(torch.ones(1, 4, 5, 8))
