"""accelerate: layers of other codebases before and after replacement: results, Parameters, and what else is kept."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import mtlkit
from harness.third_party_models import (
    LAYERS,
    NETWORKS,
    TRIED,
    MedMamba,
    accelerated,
    perturbed,
    plain_medmamba,
    wrapped,
)
from mtlkit.testing import assert_accurate


def image(model: nn.Module, batch: int = 2) -> Tensor:
    first = getattr(model[0], "first", False)
    return torch.randn((batch, 6, 5, 7) if first else (batch, 5, 7, 6))


def results(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The output, and the gradients of the input and of every parameter, by name."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = model(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype))
    return {"output": y.detach(), "x": x.grad} | {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(got: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    assert list(got) == list(exact)
    for name in exact:
        assert_accurate(name, got[name], exact[name], gradient=name != "output")


# --- the same results -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_the_same(name):
    assert_layer_is_the_same(name, check=True)


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in TRIED])
def test_unchecked_layers_compute_the_same(name):
    assert_layer_is_the_same(name, check=False)


def assert_layer_is_the_same(name: str, check: bool) -> None:
    model = wrapped(name).eval()
    x = image(model)
    exact = results(copy.deepcopy(model).double(), x.double())
    accelerated(model, check=check)
    assert isinstance(model[0], mtlkit.nn.SS2D)
    assert_same(results(model, x), exact)
    assert_same(results(model.double(), x.double()), exact)


@pytest.mark.parametrize("size", [6, 9])
@pytest.mark.parametrize("name", ["localmamba", "localmamba_windows"])
def test_windows_of_square_maps(name, size):
    model = wrapped(name).eval()
    x = torch.randn(2, size, size, 6)
    exact = results(copy.deepcopy(model).double(), x.double())
    assert_same(results(accelerated(model), x), exact)
    moved = copy.deepcopy(model).double()
    wide = torch.cat((x, x), 1).double()  # uses the original module, with the current Parameters
    torch.testing.assert_close(moved(wide), moved[0].original(wide), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["localmamba", "efficientvmamba"])
def test_other_directions_compile_whole_and_pickle(name):
    model = accelerated(wrapped(name)).eval()
    x = torch.randn(2, 8, 8, 6)
    y = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), y, rtol=1e-5, atol=1e-6)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), y)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_the_same(name):
    model = perturbed(NETWORKS[name]()).double().eval()  # in training, batch norms make gradients of biases zero
    x = torch.rand(2, 3, 32, 64, dtype=torch.float64)
    exact = results(copy.deepcopy(model), x)
    accelerated(model)
    assert sum(isinstance(m, mtlkit.nn.SS2D) for m in model.modules()) >= 2
    assert_same(results(model, x), exact)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_layout_in_memory_survives(name, memory_format):
    model = wrapped(name)
    x = image(model).contiguous(memory_format=memory_format)
    before = model(x).stride()
    assert accelerated(model)(x).stride() == before


@pytest.mark.parametrize("name", ["medmamba", "vmamba_one_way_gated"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype, name):
    model = wrapped(name).to(dtype)
    x = image(model).to(dtype)
    exact = copy.deepcopy(model).double()(x.double())
    plain = model(x)
    y = accelerated(model)(x)
    assert {p.dtype for p in model.parameters()} == {y.dtype} == {dtype}
    assert_accurate("output", y, exact, plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_default_dtypes(dtype):
    torch.set_default_dtype(dtype)
    try:
        accelerated(NETWORKS["medmamba"]())
    finally:
        torch.set_default_dtype(torch.float32)


def test_autocast():
    model = wrapped("vmamba_first_unsaid")
    x = image(model)
    exact = copy.deepcopy(model).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(x)
        y = accelerated(model)(x)
    assert y.dtype == plain.dtype == torch.bfloat16
    assert_accurate("output", y, exact, plain)


def test_dropout_goes_on():
    model = accelerated(wrapped("medmamba_dropout").eval())
    x = image(model)
    y = model(x)
    dropped = model.train()(x)
    kept = dropped != 0
    assert 0.5 < kept.float().mean() < 0.9
    torch.testing.assert_close(dropped[kept], (y / 0.7)[kept])


# --- the same Parameters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_are_the_very_same(name):
    model = wrapped(name)
    before = dict(model.named_parameters())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    accelerated(model)
    after = dict(model.named_parameters())
    assert list(after) == list(before)  # the order of an optimizer's state
    assert all(after[key] is before[key] for key in before)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dicts_go_both_ways(name):
    plain, ours = NETWORKS[name](), accelerated(NETWORKS[name]())
    x = torch.rand(1, 3, 32, 64)
    ours.eval().load_state_dict(plain.eval().state_dict())
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-5)
    other = perturbed(NETWORKS[name]()).eval()
    other_ours = accelerated(copy.deepcopy(other))
    plain.load_state_dict(other_ours.state_dict())
    torch.testing.assert_close(plain(x), other(x))


def test_medmamba_state_dict_is_the_librarys():
    plain = MedMamba(3, (1, 2), (8, 16), 4).eval()
    ours = mtlkit.models.create_model("medmamba_t", num_classes=3, depths=(1, 2), dims=(8, 16), d_state=4).eval()
    ours.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 32, 64)
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vmamba_first", "vmamba_1x1"])
def test_checkpoints_of_either_form_of_projection_load(name):
    model = accelerated(wrapped(name))
    state = wrapped(name).state_dict()
    for key in ("0.in_proj.weight", "0.out_proj.weight"):
        other = state[key].flatten(1) if state[key].dim() == 4 else state[key][:, :, None, None]
        model.load_state_dict(state | {key: other})
        assert torch.equal(model.state_dict()[key], state[key])
    with pytest.raises(RuntimeError, match=r"size mismatch for in_proj.weight|size mismatch for 0.in_proj.weight"):
        model.load_state_dict(state | {"0.in_proj.weight": torch.zeros(3, 3)})


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.rand(2, 3, 32, 32, generator=generator, dtype=torch.float64)
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("new_optimizer", [False, True], ids=["same_optimizer", "optimizer_from_state"])
def test_training_goes_on(new_optimizer):
    plain = perturbed(NETWORKS["medmamba"]()).double().train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    train(plain, optimizer, 2)
    ours, optimizer_ours = copy.deepcopy((plain, optimizer))
    accelerated(ours)
    if new_optimizer:
        state = optimizer_ours.state_dict()
        optimizer_ours = torch.optim.AdamW(ours.parameters(), lr=1e-3)
        optimizer_ours.load_state_dict(state)
    train(plain, optimizer, 3)
    train(ours, optimizer_ours, 3)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), parameter, rtol=1e-8, atol=1e-10)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_hooks_survive_both_ways():
    model = wrapped("medmamba")
    layer = model[0]
    calls = []
    removed = layer.register_forward_hook(lambda *_: calls.append("removed"))
    layer.register_forward_pre_hook(lambda module, inputs: calls.append("pre"))
    layer.register_forward_hook(lambda module, inputs, kwargs, y: calls.append("kwargs"), with_kwargs=True)
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    layer.register_state_dict_post_hook(lambda *_: calls.append("saved"))
    layer.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    accelerated(model)
    assert not calls  # the comparison does not call any
    removed.remove()
    model[0].register_forward_hook(lambda *_: calls.append("later"))
    model.load_state_dict(model.state_dict())
    model(image(model).requires_grad_()).sum().backward()
    assert calls == ["saved", "loaded", "pre", "kwargs", "later", "backward"]
    calls.clear()
    assert mtlkit.restore(model) == ["0"]
    model(image(model))
    assert calls == ["pre", "kwargs", "later"]


def test_modes_survive():
    model = NETWORKS["medmamba"]()
    model.layers[1].eval()
    accelerated(model)
    assert model.training
    modes = [stage.blocks[0].self_attention.training for stage in model.layers]
    assert modes == [True, False]
    assert {m.training for m in model.layers[1].blocks[0].self_attention.modules()} == {False}
    model.eval()
    mtlkit.restore(model)
    assert {m.training for m in model.modules()} == {False}


def test_frozen_layers_stay_frozen():
    model = NETWORKS["medmamba"]()
    model.layers[0].requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    accelerated(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    model(torch.rand(1, 3, 32, 32)).sum().backward()
    assert all((p.grad is not None) == before[name] for name, p in model.named_parameters())


def test_tied_weights_stay_tied():
    model = nn.Sequential(plain_medmamba.SS2D(6, 3), plain_medmamba.SS2D(6, 3))
    model[1].A_logs = model[0].A_logs
    model[1].in_proj.weight = model[0].in_proj.weight
    x = torch.randn(1, 5, 7, 6, dtype=torch.float64)
    exact = results(copy.deepcopy(model).double(), x)
    accelerated(model.double())
    assert model[1].A_logs is model[0].A_logs
    assert len(list(model.parameters())) == 2 * 11 - 2
    assert_same(results(model, x), exact)


def test_a_layer_in_two_places_stays_one():
    layer = plain_medmamba.SS2D(6, 3)
    model = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)})
    assert len(mtlkit.accelerate(model).replaced) == 1
    assert model["a"] is model["b"][0]
    assert mtlkit.restore(model) == ["a"]
    assert model["a"] is model["b"][0] is layer


def test_no_weight_decay_marks_survive():
    model = accelerated(wrapped("medmamba"))
    assert {name for name, p in model.named_parameters() if getattr(p, "_no_weight_decay", False)} == {
        "0.A_logs",
        "0.Ds",
    }


def test_the_comparison_leaves_no_trace():
    model = wrapped("medmamba_dropout")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = torch.get_rng_state()
    accelerated(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


# --- restore ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_restore_gives_the_originals_back(name):
    model = NETWORKS[name]().eval()
    modules = dict(model.named_modules())
    x = torch.rand(1, 3, 32, 64)
    y = model(x)
    report = mtlkit.accelerate(model)
    assert mtlkit.restore(model) == [entry.name for entry in report.replaced]
    assert dict(model.named_modules()) == modules
    assert torch.equal(model(x), y)
    assert mtlkit.restore(model) == []


def test_restore_keeps_parameters_that_were_replaced_meanwhile():
    model = accelerated(wrapped("medmamba"))
    state = {key: torch.randn_like(value) for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    x = image(model)
    y = model(x)
    mtlkit.restore(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-4)
