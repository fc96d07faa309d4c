"""Mamba: every variant compared with a plain restatement, decoding, gradients, dtypes, compilation, edge cases."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mtlkit
from harness.token_blocks import mamba_block
from mtlkit.nn import Mamba
from mtlkit.testing import assert_accurate

ONE = {"d_model": 6, "d_state": 3}
FORMS = {
    "forward": ONE,
    "v1": ONE | {"bimamba_type": "v1"},
    "v2": ONE | {"bimamba_type": "v2"},
    "v2_mean": ONE | {"bimamba_type": "v2", "if_divide_out": True, "init_layer_scale": 0.5},
    "v3": ONE | {"bimamba_type": "v3", "nslices": 3},
    "v3_mean": ONE | {"bimamba_type": "v3", "nslices": 2, "if_divide_out": True},
    "narrow": ONE | {"d_conv": 2, "expand": 1, "dt_rank": 2},
    "wide": ONE | {"d_conv": 6, "expand": 1.5, "bimamba_type": "v2"},
    "biased": ONE | {"bias": True, "bimamba_type": "v2", "conv_bias": False},
}
LENGTH = 12


def perturbed(layer: Mamba) -> Mamba:
    """The layer with all parameters moved, so that none is 0, 1 or constant over the channels."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


# --- every variant ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_forms_agree_with_a_plain_restatement(form, gradients, monkeypatch):
    layer = perturbed(Mamba(**FORMS[form], dtype=torch.float64))
    x = torch.randn(2, LENGTH, 6, dtype=torch.float64)
    got = gradients(layer, x, "auto")
    with torch.no_grad():
        assert_accurate("without gradients", layer(x), got["output"])
    monkeypatch.setattr(layer, "forward", lambda x: mamba_block(layer, x))
    exact = gradients(layer, x, "auto")
    assert len(exact) == 2 + len(layer.state_dict())
    for name in exact:
        assert_accurate(name, got[name], exact[name], gradient=name != "output")


@pytest.mark.parametrize("form", ["forward", "v1", "v2", "v3"])
def test_backends_agree(form, gradients):
    layer = perturbed(Mamba(**FORMS[form], dtype=torch.float64))
    x = torch.randn(2, LENGTH, 6, dtype=torch.float64)
    exact = gradients(layer, x, "reference")
    for other in ("cpu", "torch"):
        got = gradients(layer, x, other)
        for name in exact:
            assert_accurate(name, got[name], exact[name], gradient=name != "output")


@pytest.mark.parametrize("form", ["forward", "v1", "v2", "v3"])
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast(gradients, form, autocast):
    layer = perturbed(Mamba(**FORMS[form] | {"d_model": 16}))
    x = torch.randn(2, LENGTH, 16)
    exact = gradients(copy.deepcopy(layer).double(), x.double(), "reference")
    simple = gradients(layer, x, "torch", autocast)
    got = gradients(layer, x, "auto", autocast)
    assert got["output"].dtype == autocast
    for name in exact:
        plain_error = simple[name].to(autocast)
        assert_accurate(name, got[name].to(autocast), exact[name], plain_error, gradient=name != "output")


@pytest.mark.parametrize("form", ["forward", "v1", "v2", "v3"])
def test_bfloat16_parameters(form):
    layer = perturbed(Mamba(**FORMS[form] | {"d_model": 16}, dtype=torch.bfloat16))
    assert layer.conv1d.weight.dtype == torch.bfloat16
    assert layer.A_log.dtype == layer.D.dtype == torch.float32
    x = torch.randn(2, LENGTH, 16, dtype=torch.bfloat16)
    with torch.no_grad():
        exact = mamba_block(copy.deepcopy(layer).double(), x.double())
        with mtlkit.use_backend("torch"):
            simple = layer(x)
        assert_accurate(form, layer(x), exact, simple)


def test_directions_that_look_ahead_are_the_forward_one_of_reversed_tokens():
    layer = perturbed(Mamba(**FORMS["v2"], dtype=torch.float64))
    swapped = copy.deepcopy(layer)
    for name, parameter in swapped.named_parameters():
        other = name.replace("A_b_log", "A_log").replace("D_b", "D").replace("_b.", ".")
        if other != name:
            here, there = layer.get_parameter(name), layer.get_parameter(other)
            parameter.data, swapped.get_parameter(other).data = there.data.clone(), here.data.clone()
    x = torch.randn(2, LENGTH, 6, dtype=torch.float64)
    torch.testing.assert_close(swapped(x.flip(1)).flip(1), layer(x))


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["forward", "narrow"])
def test_steps_give_what_the_whole_sequence_gives(form):
    layer = perturbed(Mamba(**FORMS[form], dtype=torch.float64))
    x = torch.randn(3, LENGTH, 6, dtype=torch.float64)
    exact = layer(x)
    states = layer.allocate_inference_cache(3, LENGTH)
    assert [tuple(s.shape) for s in states] == [(3, layer.d_inner, layer.d_conv), (3, layer.d_inner, 3)]
    for t in range(LENGTH):
        y, *after = layer.step(x[:, t : t + 1], *states)
        assert all(a is b for a, b in zip(after, states, strict=True))
        assert_accurate(f"token {t}", y, exact[:, t : t + 1])


@pytest.mark.parametrize("known", [1, 2, 9])
def test_a_cache_continues_a_prompt(known):
    layer = perturbed(Mamba(**ONE, layer_idx=5, dtype=torch.float64))
    x = torch.randn(2, LENGTH, 6, dtype=torch.float64)
    exact = layer(x)
    params = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})
    assert_accurate("prompt", layer(x[:, :known], inference_params=params), exact[:, :known])
    assert set(params.key_value_memory_dict) == {5}
    for t in range(known, LENGTH):
        params.seqlen_offset = t
        assert_accurate(f"token {t}", layer(x[:, t : t + 1], params), exact[:, t : t + 1])


def test_a_cache_starts_again_at_offset_0():
    layer = Mamba(**ONE, layer_idx=0)
    params = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})
    x = torch.randn(2, LENGTH, 6)
    assert torch.equal(layer(x, params), layer(x, params))


def test_states_in_another_dtype():
    layer = Mamba(**ONE, dtype=torch.bfloat16)
    states = layer.allocate_inference_cache(2, 8, dtype=torch.float32)
    assert {s.dtype for s in states} == {torch.float32}
    y, *_ = layer.step(torch.randn(2, 1, 6, dtype=torch.bfloat16), *states)
    assert y.dtype == torch.bfloat16
    assert {s.dtype for s in layer.allocate_inference_cache(2, 8)} == {torch.bfloat16}


# --- training ---------------------------------------------------------------------------------------------------------


class UMamba(nn.Module):
    """An encoder stage of U-Mamba: convolutions, and a block over the pixels as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, 2, 1)
        self.norm, self.mamba = nn.LayerNorm(16), Mamba(16)
        self.head = nn.ConvTranspose2d(16, 2, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.stem(x))
        tokens = x.flatten(2).transpose(1, 2)
        mixed = self.mamba(self.norm(tokens)).transpose(1, 2).view_as(x)
        return self.head(x + mixed)


class Vim(nn.Module):
    """Vision Mamba with two blocks: patches, a class token in the middle, blocks with both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 4, 4)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, 16))
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
        self.blocks = nn.ModuleList(Mamba(16, bimamba_type="v2", if_divide_out=True) for _ in range(2))
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        middle = x.shape[1] // 2
        x = torch.cat((x[:, :middle], self.token.expand(len(x), -1, -1), x[:, middle:]), 1)
        for norm, block in zip(self.norms, self.blocks, strict=False):
            x = x + block(norm(x))
        return self.head(self.norms[-1](x)[:, middle])


@pytest.mark.parametrize("network", [UMamba, Vim])
def test_training_agrees_with_the_reference(network):
    def losses(backend: str) -> Tensor:
        torch.manual_seed(0)
        model, images = network(), torch.randn(20, 4, 1, 16, 16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        found = []
        with mtlkit.use_backend(backend):
            for x in images:
                optimizer.zero_grad()
                target = (x.mean((1, 2, 3)) > 0).long()
                target = target if network is Vim else (x[:, 0] > 0).long()
                loss = F.cross_entropy(model(x), target)
                loss.backward()
                optimizer.step()
                found.append(loss.detach())
        return torch.stack(found)

    torch.testing.assert_close(losses("auto"), losses("reference"), rtol=1e-4, atol=0)


# --- compilation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "compiler"), [("v2", "inductor"), ("v1", "aot_eager")])
def test_compiles_whole_and_once(gradients, form, compiler):
    layer = perturbed(Mamba(**FORMS[form], dtype=torch.float64))
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=compiler)
    for batch in (2, 3, 5):
        x = torch.randn(batch, LENGTH, 6, dtype=torch.float64)
        with torch._dynamo.config.patch(error_on_recompile=batch > 2):
            got = gradients(compiled, x, "auto")
        exact = gradients(layer, x, "auto")
        for name in exact:
            key = name if name in ("output", "x") else f"_orig_mod.{name}"
            assert_accurate(name, got[key], exact[name], gradient=name != "output")


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "suffixes", "further"),
    [
        ({}, ("",), {}),
        ({"bimamba_type": "none"}, ("",), {}),
        ({"bimamba_type": "v1"}, ("",), {"A_b_log": (64, 16)}),
        ({"bimamba_type": "v2", "init_layer_scale": 1.0}, ("", "_b"), {"gamma": (32,)}),
        ({"bimamba_type": "v3"}, ("", "_b", "_s"), {}),
    ],
)
def test_names_and_shapes_are_the_originals(options, suffixes, further):
    C, D, N, R = 32, 64, 16, 2
    expected = {"in_proj.weight": (2 * D, C), "out_proj.weight": (C, D)} | further
    for s in suffixes:
        expected |= {
            f"A{s}_log": (D, N),
            f"D{s}": (D,),
            f"conv1d{s}.weight": (D, 1, 4),
            f"conv1d{s}.bias": (D,),
            f"x_proj{s}.weight": (R + 2 * N, D),
            f"dt_proj{s}.weight": (D, R),
            f"dt_proj{s}.bias": (D,),
        }
    layer = Mamba(C, **options)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == expected
    other = Mamba(C, **options)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(1, 20, 32)
    assert torch.equal(layer(x), other(x))


def test_start():
    layer = Mamba(32, d_state=5, dt_rank=4, bimamba_type="v3")
    for suffix in ("", "_b", "_s"):
        assert torch.equal(getattr(layer, f"A{suffix}_log"), torch.arange(1, 6.0).log().expand(64, -1))
        assert torch.equal(getattr(layer, f"D{suffix}"), torch.ones(64))
    step = F.softplus(layer.dt_proj.bias)
    assert step.min() >= 0.99e-3
    assert step.max() <= 1.01e-1
    assert step.log10().mean().item() == pytest.approx(-2, abs=0.3)
    assert 0.45 < layer.dt_proj.weight.abs().max() <= 0.5
    constant = Mamba(32, dt_rank=4, dt_init="constant", dt_scale=0.5, dt_min=1e-6, dt_max=1e-5, init_layer_scale=0.1)
    assert set(constant.dt_proj.weight.flatten().tolist()) == {0.25}
    torch.testing.assert_close(F.softplus(constant.dt_proj.bias), torch.full((64,), 1e-4))
    assert torch.equal(constant.gamma, torch.full((32,), 0.1))


def test_the_same_seed_gives_the_values_of_the_original():
    """The original draws in_proj, conv1d, x_proj, dt_proj, the time step twice, then the other directions, out_proj."""
    torch.manual_seed(3)
    layer = Mamba(8, bimamba_type="v2")
    torch.manual_seed(3)
    in_proj, conv, x_proj = nn.Linear(8, 32, bias=False), nn.Conv1d(16, 16, 4, groups=16), nn.Linear(16, 33, bias=False)
    nn.Linear(1, 16)
    weight = torch.empty(16, 1).uniform_(-1, 1)
    dt = torch.exp(torch.rand(16) * (math.log(0.1) - math.log(0.001)) + math.log(0.001)).clamp(min=1e-4)
    back, x_back, dt_back = nn.Conv1d(16, 16, 4, groups=16), nn.Linear(16, 33, bias=False), nn.Linear(1, 16)
    out_proj = nn.Linear(16, 8, bias=False)
    for name, value in {
        "in_proj.weight": in_proj.weight,
        "conv1d.bias": conv.bias,
        "x_proj.weight": x_proj.weight,
        "dt_proj.weight": weight,
        "dt_proj.bias": dt + torch.log(-torch.expm1(-dt)),
        "conv1d_b.weight": back.weight,
        "x_proj_b.weight": x_back.weight,
        "dt_proj_b.bias": dt_back.bias,
        "out_proj.weight": out_proj.weight,
    }.items():
        torch.testing.assert_close(layer.get_parameter(name), value, rtol=1e-6, atol=0)


def test_marks_for_training_code():
    layer = Mamba(8, bimamba_type="v3")
    marked = {name for name, p in layer.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"A_log", "D", "A_b_log", "D_b", "A_s_log", "D_s"}


@pytest.mark.parametrize("change", [lambda layer: layer, copy.deepcopy], ids=["new", "copied"])
def test_marks_for_initialising_code(change):
    layer = change(Mamba(8, bimamba_type="v2"))
    assert {n for n, p in layer.named_parameters() if getattr(p, "_no_reinit", False)} == {"dt_proj.bias"}


def test_dtype_and_device():
    assert {p.device.type for p in Mamba(8, bimamba_type="v3", device="meta").parameters()} == {"meta"}
    assert {p.dtype for p in Mamba(8, dtype=torch.float64).parameters()} == {torch.float64}


def test_repr_names_the_options():
    shown = repr(Mamba(32, d_state=4, bimamba_type="v2"))
    assert "d_model=32, d_inner=64, d_state=4, dt_rank=2, d_conv=4, bimamba_type='v2'" in shown


# --- edge cases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["forward", "v1", "v2", "v3"])
def test_empty_batch(form):
    layer = Mamba(**FORMS[form])
    y = layer(torch.randn(0, LENGTH, 6))
    assert y.shape == (0, LENGTH, 6)
    y.sum().backward()
    assert not layer.A_log.grad.any()


@pytest.mark.parametrize("length", [1, 2, 3, 67])
@pytest.mark.parametrize("form", ["forward", "v1", "v2"])
def test_odd_lengths(form, length):
    layer = perturbed(Mamba(**FORMS[form], dtype=torch.float64))
    x = torch.randn(2, length, 6, dtype=torch.float64)
    assert_accurate("output", layer(x), mamba_block(layer, x))


def test_strided_input():
    layer = Mamba(**FORMS["v3"])
    x = torch.randn(2, 6, LENGTH)
    torch.testing.assert_close(layer(x.transpose(1, 2)), layer(x.transpose(1, 2).contiguous()))


def test_inputs_and_parts_are_left_alone():
    layer = Mamba(**FORMS["v3"])
    seen = []
    layer.in_proj.register_forward_hook(lambda module, inputs, output: seen.append((output, output.clone())))
    x = torch.randn(2, LENGTH, 6)
    before = x.clone()
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x))
    assert torch.equal(x, before)
    assert all(torch.equal(output, copied) for output, copied in seen)


def test_repeats_bit_by_bit(gradients):
    layer = Mamba(16, bimamba_type="v3", nslices=3)
    x = torch.randn(2, 27, 16)
    first, second = gradients(layer, x, "auto"), gradients(layer, x, "auto")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 0}, "d_model: expected a number above 0, got 0"),
        ({"d_state": 0}, "d_state"),
        ({"d_conv": 0}, "d_conv"),
        ({"expand": 0.01}, "expand: expected at least one channel for the scan, got 0.01 of 8"),
        ({"dt_rank": 0}, "dt_rank"),
        ({"nslices": 0}, "nslices"),
        ({"dt_init": "normal"}, "dt_init: expected one of 'random', 'constant', got 'normal'"),
        ({"bimamba_type": "v4"}, "bimamba_type: expected one of None, 'none', 'v1', 'v2', 'v3', got 'v4'"),
        ({"dt_min": 0.0}, "dt_min"),
        ({"dt_max": 1e-4}, "dt_max: expected at least dt_min = 0.001, got 0.0001"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Mamba(**{"d_model": 8} | options)


@pytest.mark.parametrize(
    ("form", "x", "error", "message"),
    [
        ("forward", torch.ones(2, 3, 5), ValueError, r"hidden_states: expected shape \(B, L, 6\) .* got \(2, 3, 5\)"),
        ("forward", torch.ones(2, 0, 6), ValueError, "L at least 1"),
        ("forward", torch.ones(3, 6), ValueError, "hidden_states: expected 3 dimensions"),
        ("forward", torch.ones(2, 3, 6, dtype=torch.int64), TypeError, "hidden_states: expected float32"),
        ("v3", torch.ones(2, 7, 6), ValueError, "hidden_states: expected a multiple of nslices = 3 tokens, got 7"),
    ],
)
def test_bad_input(form, x, error, message):
    with pytest.raises(error, match=message):
        Mamba(**FORMS[form])(x)


def test_bad_decoding():
    params = SimpleNamespace(seqlen_offset=0, key_value_memory_dict={})
    x = torch.ones(2, 3, 6)
    with pytest.raises(ValueError, match="layer_idx: expected the key"):
        Mamba(**ONE)(x, params)
    with pytest.raises(ValueError, match="bimamba_type: expected None for decoding token by token, got 'v2'"):
        Mamba(**FORMS["v2"], layer_idx=0)(x, params)
    layer = Mamba(**ONE, layer_idx=0)
    layer(x, params)
    with pytest.raises(ValueError, match=r"hidden_states: expected the 2 sequences whose states .* got 3"):
        layer(torch.ones(3, 3, 6), params)
    with pytest.raises(ValueError, match="hidden_states: expected one token per sequence, got 3"):
        layer.step(x, *layer.allocate_inference_cache(2, 3))
