"""Copies of networks for inference in PyTorch: the same outputs at all sizes, and an unchanged model."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import mtlkit
from harness.third_party_models import MedMamba, accelerated
from mtlkit.deploy import _optimize, _packed
from mtlkit.deploy._example import example_of, named_outputs
from mtlkit.deploy._packed import Packed
from mtlkit.models import create_model, list_models
from mtlkit.testing import FORWARD_BOUND, relative_error

SCANS = {"depths": (1,), "dims": (8,)}
PAIR = {"encoder": "resnet18", "decoder_dims": (16, 12, 8, 8), "clf_dim": 16}
SMALL = {
    "btinet": PAIR | {"levels": (3,)},
    "mbdi": PAIR | {"hmsf": False, "normaliser": "running"},
    "hybrid_vssm": {"depths": (2, 1)},
    "medmamba_t": SCANS,
    "vmamba_t_v0": SCANS,
    "vmamba_t_s1l8": SCANS,
    "vm_unet": {"depths": (1, 1), "dims": (8, 16), "decoder_depths": (1, 1)},
}
LARGE = sorted(set(list_models()) - set(SMALL))


def spread(model: nn.Module) -> nn.Module:
    """Gives batch norms statistics that differ from the initial ones."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def assert_same(model: nn.Module, fast: nn.Module, *given: Tensor) -> None:
    """Within the policy for one operator or, for many operators, within three times the error of PyTorch's float32."""
    exact_model = copy.deepcopy(model).eval().double()
    with torch.no_grad(), mtlkit.use_backend("torch"):
        exact = named_outputs(exact_model(*(one.double() if one.is_floating_point() else one for one in given)))
    with torch.no_grad():
        plain = named_outputs(copy.deepcopy(model).eval()(*given))
        for _ in range(2):  # before and after weights are packed
            for name, got in named_outputs(fast(*given)).items():
                bound = max(FORWARD_BOUND[torch.float32], 3 * relative_error(plain[name], exact[name]))
                assert relative_error(got, exact[name]) <= bound, name


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_networks(name):
    torch.manual_seed(0)
    model = spread(create_model(name, **SMALL.get(name, {})))
    fast, done = mtlkit.optimize(model, report=True)
    assert model.training
    assert not any(module.training for module in fast.modules())
    assert done.packed
    assert_same(model, fast, *example_of(model, None))
    if name in SMALL:
        odd = [one[:1, ..., :49, :63] if one.dim() > 3 else one[:1] for one in example_of(model, None)]
        assert_same(model, fast, *odd)


@pytest.mark.parametrize("name", ["mbdi", "medmamba_t"])
def test_in_bfloat16(name):
    torch.manual_seed(0)
    model = spread(create_model(name, **SMALL[name])).eval()
    fast, done = mtlkit.optimize(model, dtype=torch.bfloat16, report=True)
    assert {p.dtype for p in fast.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert 1e-4 < done.error < 0.05
    given = example_of(model, None)
    with torch.no_grad():
        expected = named_outputs(model(*given))
        for one in (fast, pickle.loads(pickle.dumps(fast))):
            found = named_outputs(one(*given))
            assert found.keys() == expected.keys()
            for key, value in found.items():
                assert value.dtype == torch.float32
                assert relative_error(value, expected[key]) < 0.05, key


@pytest.mark.parametrize("name", ["mbdi", "medmamba_t"])
def test_where_onednn_lacks_the_dtype(monkeypatch, name):
    """As bfloat16 is on a CPU with AVX2 alone: PyTorch's own code runs, and fused activations are applied."""
    for module in (_optimize, _packed):
        monkeypatch.setattr(module, "DTYPES", ())
    model = spread(create_model(name, **SMALL[name])).eval()
    with pytest.warns(UserWarning, match=r"dtype: oneDNN cannot run torch\.bfloat16 on this CPU"):
        assert mtlkit.optimize(model, dtype=torch.bfloat16, report=True)[1].error < 0.05
    fast = mtlkit.optimize(model)
    assert not any(module._packed[1] for module in fast.modules() if isinstance(module, Packed))
    assert_same(model, fast, *example_of(model, None))


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match=r"dtype: expected torch\.bfloat16 or None, got torch\.float16"):
        mtlkit.optimize(nn.Linear(2, 2), example=torch.rand(2, 2), dtype=torch.float16)


def test_everything_is_folded_and_fused():
    """In MBDI with an EfficientNet: TensorFlow's padding, batch norms with activations, transposed convolutions."""
    model = spread(create_model("mbdi", encoder="tf_efficientnet_b0.in1k", hmsf=False, normaliser="running"))
    fast, done = mtlkit.optimize(model, report=True)
    left = [name for name, module in fast.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(".bn" in name or name.endswith("_bn") for name in left)
    assert not any(name.startswith("encoder") for name in left)
    assert len(done.phased) == 5
    assert len(done.fused) >= 40
    assert str(done).startswith("mtlkit.optimize: ")
    assert done.error < 1e-5
    assert_same(model, fast, torch.rand(1, 3, 64, 96))


def test_a_third_party_model():
    model = accelerated(spread(MedMamba(3, (1,), (8,), 4)))
    fast = mtlkit.optimize(model, example=torch.rand(1, 3, 32, 48))
    assert_same(model, fast, torch.rand(3, 3, 48, 40))


def test_the_model_stays_as_it_is():
    model = spread(create_model("medmamba_t", **SCANS)).train()
    before, parts = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    state = torch.get_rng_state()
    mtlkit.optimize(model)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [type(module) for module in model.modules()] == parts
    assert torch.equal(torch.get_rng_state(), state)


def test_twice():
    model = spread(create_model("medmamba_t", **SCANS))
    fast = mtlkit.optimize(model)
    again, done = mtlkit.optimize(fast, report=True)
    assert (done.folded, done.fused, done.packed, done.phased, done.error) == ((), (), (), (), 0)
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(again(x), fast(x))
    assert again is not fast


class Shared(nn.Module):
    """One convolution for two batch norms, one batch norm for two convolutions, and one activation for all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.left, self.right, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.act, self.twice = nn.ReLU(), nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.alias = self.twice

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(self.conv(x)) + self.b(self.conv(x + 1)))
        y = self.act(self.norm(self.left(x)) - self.norm(self.right(x)))
        return self.alias(self.twice(y))


def test_shared_layers():
    torch.manual_seed(0)
    model = spread(Shared())
    fast, done = mtlkit.optimize(model, example=torch.rand(2, 3, 8, 8), report=True)
    assert done.folded == ("twice.1",)
    assert done.fused == ("twice.2",)
    assert fast.twice is fast.alias
    assert_same(model, fast, torch.rand(1, 3, 7, 9))


def test_layers_with_hooks_show_what_they_showed():
    model = spread(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    )
    seen = []
    model[0].register_forward_hook(lambda _module, _given, output: seen.append(output))
    fast, done = mtlkit.optimize(model, example=torch.rand(2, 3, 8, 8), report=True)
    assert done.folded == ("4",)
    seen.clear()
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        fast(x), model(x)
    assert torch.equal(*seen)


def test_one_layer_and_none():
    layer = nn.Conv2d(3, 4, 3)
    fast = mtlkit.optimize(layer, example=torch.rand(1, 3, 8, 8))
    assert isinstance(fast, Packed)
    assert_same(layer, fast, torch.rand(1, 3, 8, 8))
    assert isinstance(mtlkit.optimize(nn.Softmax(1), example=torch.rand(1, 3)), nn.Softmax)


def test_other_batch_norms_stay():
    """Batch statistics, and 1-D batch norms."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.BatchNorm2d(4, affine=False)
    )
    _, done = mtlkit.optimize(spread(model), example=torch.rand(2, 3, 8, 8), report=True)
    assert done.folded == ()


def test_gradients_of_images():
    model = spread(create_model("medmamba_t", **SCANS)).eval()
    fast = mtlkit.optimize(model)
    found = []
    for network in (model, fast):
        x = torch.linspace(0, 1, 3 * 32 * 32).reshape(1, 3, 32, 32).requires_grad_()
        network(x).sum().backward()
        found.append(x.grad)
    assert relative_error(*found) < 1e-5


def test_an_optimised_copy_can_be_exported(tmp_path):
    pytest.importorskip("onnxscript")
    fast = mtlkit.optimize(spread(create_model("medmamba_t", **SCANS)))
    assert mtlkit.export(fast, tmp_path / "net.onnx").error < 1e-5


def test_bad_input():
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module, got str"):
        mtlkit.optimize("model")
    with pytest.raises(ValueError, match="example: expected a tensor"):
        mtlkit.optimize(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="example: expected what the model takes"):
        mtlkit.optimize(nn.Linear(2, 2), example=torch.rand(2, 3))

    class Silent(nn.Module):
        def forward(self, x: Tensor) -> str:
            return "x"

    with pytest.raises(ValueError, match="model: expected tensors as output"):
        mtlkit.optimize(Silent(), example=torch.rand(2, 3))


def test_what_differs_is_an_error(monkeypatch):
    monkeypatch.setattr("mtlkit.deploy._optimize._fold", lambda layer, norm: None)
    with pytest.raises(ValueError, match="model: expected a copy that gives the same"):
        mtlkit.optimize(spread(create_model("medmamba_t", **SCANS)))
