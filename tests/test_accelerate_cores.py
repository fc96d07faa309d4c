"""accelerate: scans that do more, or less, than an SS2D layer, before and after replacement."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import mtlkit
from harness.third_party_cores import CORES, MultiScaleSS2D, around
from harness.third_party_models import accelerated
from mtlkit.testing import assert_accurate


def drawn(name: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in CORES[name][1]]


def results(model: nn.Module, inputs: list[Tensor]) -> dict[str, Tensor]:
    """The output, and the gradients of every input and parameter, by name."""
    model.zero_grad()
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    y = model(*inputs)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype))
    found = {"output": y.detach()} | {f"input {i}": x.grad for i, x in enumerate(inputs)}
    return found | {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", CORES)
def test_scans_compute_the_same(name):
    model = around(name).double().eval()  # accelerate itself compares in float32
    exact = results(copy.deepcopy(model), drawn(name, torch.float64))
    before = dict(model.named_parameters())
    keys = list(model.state_dict())
    original = model.core
    accelerated(model)
    assert model.core is not original
    found = results(model, drawn(name, torch.float64))
    assert list(found) == list(exact)
    for key in exact:
        assert_accurate(key, found[key], exact[key], gradient=key != "output")
    assert all(before[key] is parameter for key, parameter in model.named_parameters())
    assert list(model.state_dict()) == keys
    assert mtlkit.accelerate(model).already == ("core",)
    assert mtlkit.restore(model) == ["core"]
    assert model.core is original


@pytest.mark.parametrize("name", CORES)
def test_state_dicts_go_both_ways(name):
    plain, ours = around(name).eval(), accelerated(around(name)).eval()
    inputs = drawn(name)
    ours.load_state_dict(plain.state_dict())
    torch.testing.assert_close(ours(*inputs), plain(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mambairv2", "sigma_crossed"])
def test_scans_compile_whole_and_pickle(name):
    model = accelerated(around(name)).eval()
    inputs = drawn(name)
    y = model(*inputs)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), y, rtol=1e-5, atol=1e-6)
    assert torch.equal(pickle.loads(pickle.dumps(model))(*inputs), y)


def test_modes_of_parts_survive():
    model = around("msvmamba")
    model.core.out_norm.eval()
    accelerated(model)
    assert model.core.training
    assert not model.core.out_norm.training


def test_parts_with_two_names_keep_their_parameters():
    model = around("msvmamba")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    accelerated(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_another_multi_scale_layer_is_left_alone():
    layer = MultiScaleSS2D(6, 2, False, False)
    layer.extra = nn.Linear(2, 2)
    (left,) = mtlkit.accelerate(nn.Sequential(layer)).left
    assert "it has parts that MSVMamba has not: extra" in left.reason


def test_a_bare_scan_of_three_directions_is_left_alone():
    model = around("segman")
    model.core.dt_projs_weight = nn.Parameter(torch.ones(3, 6, 1))
    (left,) = mtlkit.accelerate(model).left
    assert "x_proj_weight has another size" in left.reason
