"""A complete SS2D layer in one call: accurate in every form, and not used if anything could change the computation."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

import mtlkit
from harness.fence import FENCES, fence
from mtlkit import _native
from mtlkit.nn import SS2D
from mtlkit.operators import ss2d_layer
from mtlkit.testing import assert_accurate

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")

FORMS = {
    "v0": {"d_model": 24, "d_state": 16},
    "v2": {"d_model": 20, "d_state": 1, "ssm_ratio": 1.0, "conv_bias": False, "gate": None},
    "linear_gate": {"d_model": 9, "d_state": 3, "gate": "linear"},
    "without_norm": {"d_model": 17, "d_state": 2, "norm": None, "dt_rank": 5},
    "linear_gate_alone": {"d_model": 8, "d_state": 2, "norm": None, "gate": "linear"},
    "conv_5": {"d_model": 17, "d_state": 2, "d_conv": 5},
    "conv_7": {"d_model": 8, "d_state": 2, "d_conv": 7, "gate": None},
    "without_conv": {"d_model": 25, "d_state": 4, "d_conv": 1},
    "biased_projections": {"d_model": 50, "d_state": 7, "bias": True},
    "narrow": {"d_model": 1, "d_state": 1, "ssm_ratio": 1.0},
    "ratio": {"d_model": 10, "d_state": 5, "ssm_ratio": 1.75},
}
SIZES = [(1, 1, 1), (2, 7, 5), (3, 1, 9), (1, 13, 4)]


class Adapted(nn.Linear):
    """Like an adapter: a linear layer that computes more than its class."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def make(form: str = "v0", **options) -> SS2D:
    layer = SS2D(**FORMS[form] | options).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def image(layer: SS2D, batch: int = 2, height: int = 7, width: int = 5) -> Tensor:
    return torch.randn(batch, height, width, layer.d_model)


def composed(layer: nn.Module, x: Tensor) -> Tensor:
    """The result of the layer's parts: if a gradient is needed, the layer is not a single call."""
    return layer(x.clone().requires_grad_()).detach()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The outputs of all calls so far."""
    found, run = [], ss2d_layer.ss2d_layer

    def spy(*arguments: object) -> Tensor:
        found.append(run(*arguments))
        return found[-1]

    monkeypatch.setattr(ss2d_layer, "ss2d_layer", spy)
    return found


@pytest.fixture
def one_call(calls: list[Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    """Runs a layer without gradients, and asserts that it makes one call."""

    def run(layer: nn.Module, x: Tensor) -> Tensor:
        before = len(calls)
        with torch.no_grad():
            y = layer(x)
        assert len(calls) == before + 1
        return y

    return run


@pytest.fixture
def by_parts(calls: list[Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    """Runs a layer without gradients, and asserts that it uses its parts."""

    def run(layer: nn.Module, x: Tensor) -> Tensor:
        before = len(calls)
        with torch.no_grad():
            y = layer(x)
        assert len(calls) == before
        return y

    return run


# --- results -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_accurate(isa, one_call, form):
    layer = make(form)
    exact_layer = copy.deepcopy(layer).double()
    for size in SIZES:
        x = image(layer, *size)
        with mtlkit.use_backend("reference"), torch.no_grad():
            exact = exact_layer(x.double())
        assert_accurate(form, one_call(layer, x), exact)


def test_many_channels_and_pixels(one_call):
    layer = make(d_model=100, d_state=2)  # several panels, the last one partly filled
    x = image(layer, 1, 23, 19)
    torch.testing.assert_close(one_call(layer, x), composed(layer, x))


def test_large_maps(one_call):
    layer = make(d_model=16, d_state=1)
    x = image(layer, 1, 130, 170)  # needs more bytes than one large block
    torch.testing.assert_close(one_call(layer, x), composed(layer, x))


@pytest.mark.parametrize("form", ["v0", "v2", "without_conv", "linear_gate_alone"])
def test_the_same_bits_with_every_count_of_threads(one_call, threads, form):
    """The scan is split if its blocks do not fill the threads, and then adds in another order; here they do.

    With this many states, even the small map gets eight threads, at any vector width.
    """
    layer = make(form, d_model=64, d_state=16, ssm_ratio=2.0)
    for size in ((2, 20, 17), (1, 3, 5)):
        x = image(layer, *size)
        found = []
        for count in (1, 2, 4, 8):
            threads(count)
            found.append(one_call(layer, x))
        assert all(torch.equal(found[0], other) for other in found[1:])


def test_strided_input(one_call):
    layer = make()
    x = torch.randn(2, 48, 5, 7).permute(0, 2, 3, 1)[..., ::2]  # (2, 5, 7, 24)
    assert torch.equal(one_call(layer, x), one_call(layer, x.contiguous()))


def test_transposed_weights(one_call):
    layer, x = make(bias=True), image(make())
    y = one_call(layer, x)
    for parameter in layer.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.mT.contiguous().mT
    assert torch.equal(one_call(layer, x), y)


@pytest.mark.parametrize("place", FENCES.values(), ids=FENCES)
def test_reads_and_writes_within_its_tensors(monkeypatch, one_call, place):
    for form in ("v0", "narrow", "biased_projections"):
        layer = make(form)
        for parameter in layer.parameters():
            parameter.data = place(parameter.data)
        x = place(image(layer))
        with monkeypatch.context() as patch:
            fence(patch, place)
            y = one_call(layer, x)
        torch.testing.assert_close(y, composed(layer, x))


def test_negated_input(one_call, by_parts):
    layer = make()
    x = image(layer)
    view = torch.complex(x, -x).conj().imag  # equals x, by the negative bit
    assert view.is_neg()
    torch.testing.assert_close(by_parts(layer, view), one_call(layer, x))


# --- changing weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["in place", "behind autograd", "other storage", "other parameter", "state dict"])
def test_follows_its_weights(one_call, change):
    layer, x = make(bias=True), image(make())
    before = one_call(layer, x)
    for module in layer.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            other = (1.25 * parameter).detach()
            if change == "in place":
                with torch.no_grad():
                    parameter.mul_(1.25)
            elif change == "behind autograd":
                parameter.data.mul_(1.25)
            elif change == "other storage":
                parameter.data = other
            elif change == "other parameter":
                setattr(module, name, nn.Parameter(other))
    if change == "state dict":
        layer.load_state_dict({name: 1.25 * value for name, value in layer.state_dict().items()}, assign=True)
    after = one_call(layer, x)
    assert not torch.allclose(after, before, rtol=0.1)
    torch.testing.assert_close(after, composed(layer, x))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_and_pickles_are_layers_of_their_own(one_call, again):
    layer, x = make(), image(make())
    y, other = one_call(layer, x), again(layer)
    assert torch.equal(one_call(other, x), y)
    with torch.no_grad():
        other.A_logs.zero_()
    assert not torch.equal(one_call(other, x), y)
    assert torch.equal(one_call(layer, x), y)


@pytest.mark.parametrize("name", ["x_proj_weight", "dt_projs_weight", "Ds"])
def test_parameters_that_do_not_fit_are_named(name):
    layer, x = make(), image(make())
    setattr(layer, name, nn.Parameter(getattr(layer, name)[..., :-1].clone()))
    with torch.no_grad(), pytest.raises((ValueError, RuntimeError)):
        layer(x)


# --- cases in which the layer uses its parts --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"out_act": True}, {"d_conv": 9}, {"dtype": torch.float64}])
def test_other_forms(by_parts, options):
    layer = make(**options)
    by_parts(layer, image(layer).to(options.get("dtype", torch.float32)))


@pytest.mark.parametrize("part", ["in_proj", "conv2d", "out_norm", "out_proj"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks_of_a_part_are_called(by_parts, one_call, part, kind):
    layer, seen = make(), []
    x = image(layer)
    y = one_call(layer, x)
    register = getattr(getattr(layer, part), f"register_{kind}_hook")
    handle = register(lambda _module, *found: seen.append(found))
    torch.testing.assert_close(by_parts(layer, x), y)
    layer(x.requires_grad_()).sum().backward()
    assert len(seen) == (1 if kind == "full_backward" else 2)
    handle.remove()
    assert torch.equal(one_call(layer, x), y)


def test_hooks_of_all_modules_are_called(by_parts):
    layer, seen = make(), []
    with torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module))):
        by_parts(layer, image(layer))
    assert {nn.Conv2d, nn.LayerNorm, SS2D} <= set(seen)


def test_hooks_of_the_layer_are_called(one_call):
    layer, seen = make(), []
    layer.register_forward_hook(lambda *found: seen.append(found))
    one_call(layer, image(layer))
    assert len(seen) == 1


def test_other_parts_in_their_place(by_parts, one_call):
    layer, x = make(), image(make())
    y = one_call(layer, x)
    for name in ("in_proj", "out_proj"):
        with torch.no_grad():
            getattr(layer, name).weight.div_(2)
        other = Adapted(*getattr(layer, name).weight.shape[::-1], bias=False)
        other.load_state_dict(getattr(layer, name).state_dict())
        setattr(layer, name, other)
    torch.testing.assert_close(by_parts(layer, x), y)


@pytest.mark.parametrize("part", ["in_proj", "conv2d", "out_norm", "out_proj"])
def test_a_forward_of_its_own(by_parts, part):
    layer, x = make(), image(make())
    module = getattr(layer, part)
    own, seen = module.forward, []
    module.forward = lambda t: seen.append(t) or own(t)
    by_parts(layer, x)
    assert len(seen) == 1


def test_a_norm_of_another_kind(by_parts):
    layer, x = make(gate=None), image(make())
    layer.out_norm = nn.RMSNorm(layer.d_inner)
    same = copy.deepcopy(layer)
    same.out_norm.register_forward_hook(lambda *_: None)
    assert torch.equal(by_parts(layer, x), by_parts(same, x))
    layer.out_norm = nn.Sequential(nn.LayerNorm(layer.d_inner), nn.Tanh())
    assert not torch.allclose(by_parts(layer, x), by_parts(same, x))


def test_circular_padding_is_kept(by_parts, one_call):
    layer, x = make(), image(make())
    y = one_call(layer, x)
    layer.conv2d.padding_mode = "circular"
    layer.conv2d._reversed_padding_repeated_twice = [1, 1, 1, 1]
    assert not torch.allclose(by_parts(layer, x), y)


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


@pytest.mark.parametrize(("part", "name"), [("", "x_proj_weight"), ("out_proj", "weight"), ("conv2d", "weight")])
def test_parametrized_weights(by_parts, part, name):
    layer, x = make(), image(make())
    doubled = copy.deepcopy(layer)
    parametrize.register_parametrization(doubled.get_submodule(part), name, Doubled())
    with torch.no_grad():
        layer.get_submodule(part).get_parameter(name).mul_(2)
    torch.testing.assert_close(by_parts(doubled, x), composed(layer, x))


def test_gradients_autocast_and_other_backends(calls):
    layer, x = make(), image(make())
    layer(x)  # its parameters require gradients
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        for backend in ("torch", "reference"):
            with mtlkit.use_backend(backend):
                layer(x)
        layer.bfloat16()(x.bfloat16())
        assert layer(x[:0].bfloat16()).shape == x[:0].shape
    assert not calls
    layer.float().requires_grad_(False)
    layer(x)
    with torch.inference_mode():
        layer(x)
    assert len(calls) == 2


def test_modes_of_torch_see_the_parts(by_parts):
    layer, x = make(), image(make())
    with FlopCounterMode(display=False) as counter:
        by_parts(layer, x)
    assert counter.get_total_flops() > 0


def test_empty_batch(by_parts):
    layer = make()
    assert by_parts(layer, image(layer, 0)).shape == (0, 7, 5, 24)


def test_training_mode(by_parts):
    """A reentrant checkpoint runs twice, once without gradients; both must give the same bits."""
    layer, x = make(dropout=0.5).train(), image(make())
    assert 0.3 < (by_parts(layer, x) == 0).float().mean() < 0.7
    layer.dropout.eval()
    assert torch.equal(by_parts(layer, x), composed(layer, x))


def test_dropout_by_itself(one_call):
    layer = make(dropout=0.5)
    layer.dropout.train()
    assert 0.3 < (one_call(layer, image(layer)) == 0).float().mean() < 0.7


def test_compiled_and_exported(by_parts, one_call):
    layer, x = make(), image(make())
    y = one_call(layer, x)
    torch._dynamo.reset()
    torch.testing.assert_close(by_parts(torch.compile(layer, fullgraph=True, backend="aot_eager"), x), y)
    exported = torch.export.export(layer, (x,))
    assert any("ss2d_norm_gate" in str(node.target) for node in exported.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), y)
        traced = torch.jit.trace(layer, x)
        torch.testing.assert_close(traced(x), y)
