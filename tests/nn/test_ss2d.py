"""SS2D: golden values, every variant compared with a plain composition, gradients, dtypes, compilation, edge cases."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mtlkit
from mtlkit import ops
from mtlkit.nn import SS2D
from mtlkit.testing import assert_accurate

V0 = {"d_model": 6, "d_state": 3}
V2 = {"d_model": 6, "d_state": 1, "ssm_ratio": 1.0, "conv_bias": False, "gate": None}
FORMS = {
    "v0": V0,
    "v2": V2,
    "v2_gated": V0 | {"d_state": 2, "dt_rank": 4},
    "linear_gate": V0 | {"gate": "linear"},
    "out_act": V0 | {"out_act": True},
    "out_act_without_gate": V2 | {"out_act": True},
    "without_norm": V0 | {"norm": None},
    "conv_5": V0 | {"d_conv": 5},
    "without_conv": V2 | {"d_conv": 1},
    "biased_projections": V0 | {"bias": True},
    "init_v1": V0 | {"init": "v1"},
    "init_v2": V0 | {"init": "v2"},
}


def perturbed(layer: SS2D) -> SS2D:
    """The layer with all parameters moved, so that none is 0, 1 or constant over the channels."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def plain(layer: SS2D, x: Tensor) -> Tensor:
    """The layer as described in the papers: permute first, project each direction, scan, merge."""
    rank, states = layer.dt_rank, layer.d_state
    x = layer.in_proj(x)  # (B, H, W, D | 2 D)
    z = None
    if layer.gate is not None:
        x, z = x.chunk(2, -1)  # (B, H, W, D)
    u = x.permute(0, 3, 1, 2)  # (B, D, H, W)
    if layer.d_conv > 1:
        u = layer.conv2d(u)
    u = F.silu(u)
    height, width = u.shape[2:]
    us = ops.cross_scan(u)  # (B, 4, D, L)
    x_dbl = torch.einsum("bkdl,kmd->bkml", us, layer.x_proj_weight)  # (B, 4, R + 2 N, L)
    dts, B, C = x_dbl.split((rank, states, states), 2)
    delta = torch.einsum("bkrl,kdr->bkdl", dts, layer.dt_projs_weight)  # (B, 4, D, L)
    ys = ops.selective_scan(
        us.flatten(1, 2),
        delta.flatten(1, 2),
        -layer.A_logs.exp(),
        B,
        C,
        layer.Ds,
        delta_bias=layer.dt_projs_bias.flatten(),
        delta_softplus=True,
    )  # (B, 4 D, L)
    y = ops.cross_merge(ys.unflatten(1, (4, -1)), height, width).permute(0, 2, 3, 1)  # (B, H, W, D)
    y = layer.out_norm(y)
    if layer.out_act:
        y = F.gelu(y)
    if layer.gate is not None:
        y = y * (F.silu(z) if layer.gate == "silu" else z)
    return layer.out_proj(y)


# --- golden values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("medmamba_ss2d", {"d_model": 4, "d_state": 3}),
        ("vmamba_v05_noz_ss2d", V2 | {"d_model": 4}),
        ("vmamba_v2_z_ss2d", {"d_model": 4, "d_state": 2}),
    ],
)
def test_golden(assert_golden, backend, dtype, name, options):
    assert_golden(name, SS2D(**options), dtype)


def test_golden_scan_order(golden):
    pixels = torch.arange(6.0).view(1, 1, 2, 3)
    assert ops.cross_scan(pixels)[0, :, 0].long().tolist() == golden["cross_scan_order_H2_W3"]


def test_golden_merge(golden, dtype):
    ys = torch.tensor(golden["cross_merge"]["ys"], dtype=dtype)  # (1, 4, C, H, W), each in its own order
    y = torch.tensor(golden["cross_merge"]["y"], dtype=dtype)  # (1, C, H, W)
    merged = ops.cross_merge(ys.flatten(-2), *ys.shape[-2:])
    torch.testing.assert_close(merged.view_as(y), y, atol=1e-6, rtol=0)


def test_merge_of_scan_is_four_times_the_image():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(ops.cross_merge(ops.cross_scan(x), 5, 4), 4 * x)


@pytest.mark.parametrize("A_log", [-60.0, -1.0, 1.0])
def test_one_state_has_a_closed_form(backend, A_log):
    B, D, H, W, R = 2, 3, 3, 4, 2
    u = torch.randn(B, D, H, W, dtype=torch.float64)
    x_dbl = torch.randn(B, 4, R + 2, H, W, dtype=torch.float64)
    weight, bias = torch.randn(4, D, R, dtype=torch.float64), torch.randn(4, D, dtype=torch.float64)
    Ds = torch.randn(4 * D, dtype=torch.float64)
    y = ops.ss2d(u, x_dbl, weight, bias, torch.full((4 * D, 1), A_log, dtype=torch.float64), Ds)

    us = ops.cross_scan(u)  # (B, 4, D, L)
    dts, Bs, Cs = ops.cross_scan(x_dbl).split((R, 1, 1), 2)  # (B, 4, R | 1 | 1, L)
    dt = F.softplus(torch.einsum("bkrl,kdr->bkdl", dts, weight) + bias[..., None])  # (B, 4, D, L)
    elapsed = dt.cumsum(-1)  # (B, 4, D, L)
    decay = torch.exp(-torch.tensor(A_log).exp() * (elapsed[..., :, None] - elapsed[..., None, :])).tril()
    h = torch.einsum("bkdts,bkds->bkdt", decay, dt * us * Bs)  # (B, 4, D, L)
    exact = ops.cross_merge(h * Cs + Ds.view(4, D, 1) * us, H, W)  # (B, D, H, W)
    if A_log == -60.0:  # without decay the states are cumulative sums
        torch.testing.assert_close(h, (dt * us * Bs).cumsum(-1))
    torch.testing.assert_close(y, exact)


# --- every variant ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_forms_agree_with_a_plain_composition(form):
    layer = perturbed(SS2D(**FORMS[form], dtype=torch.float64))
    x = torch.randn(2, 5, 3, 6, dtype=torch.float64)
    assert_accurate(form, layer(x), plain(layer, x))


@pytest.mark.parametrize("form", ["v0", "v2", "linear_gate"])
@pytest.mark.parametrize("other", ["cpu", "torch"])
def test_gradients_of_every_parameter(gradients, form, other):
    layer = perturbed(SS2D(**FORMS[form], dtype=torch.float64))
    x = torch.randn(2, 7, 5, 6, dtype=torch.float64)
    exact, got = gradients(layer, x, "reference"), gradients(layer, x, other)
    assert len(exact) == 2 + len(layer.state_dict())
    for name in exact:
        assert_accurate(name, got[name], exact[name], gradient=name != "output")


@pytest.mark.parametrize("form", ["v0", "v2"])
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast(gradients, form, autocast):
    layer = perturbed(SS2D(**FORMS[form] | {"d_model": 16}))
    x = torch.randn(2, 7, 5, 16)
    exact = gradients(copy.deepcopy(layer).double(), x.double(), "reference")
    simple = gradients(layer, x, "torch", autocast)
    got = gradients(layer, x, "auto", autocast)
    assert got["output"].dtype == autocast
    for name in exact:
        plain_error = simple[name].to(autocast)
        assert_accurate(name, got[name].to(autocast), exact[name], plain_error, gradient=name != "output")


def test_float16_scan_may_pass_its_range():
    layer = SS2D(16)
    with torch.no_grad():
        layer.Ds.fill_(3e4)
    layer = layer.half()
    x = 20 * torch.randn(1, 4, 4, 16, dtype=torch.float16)
    assert plain(copy.deepcopy(layer).float(), x.float()).isfinite().all()
    y = layer(x)
    assert y.dtype == torch.float16
    assert y.isfinite().all()


# --- compilation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "compiler"), [("v0", "inductor"), ("v2", "aot_eager")])
def test_compiles_whole_and_once(gradients, form, compiler):
    layer = perturbed(SS2D(**FORMS[form], dtype=torch.float64))
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=compiler)
    for batch in (2, 3, 5):
        x = torch.randn(batch, 5, 4, 6, dtype=torch.float64)
        with torch._dynamo.config.patch(error_on_recompile=batch > 2):
            got = gradients(compiled, x, "auto")
        exact = gradients(layer, x, "auto")
        for name in exact:
            key = name if name in ("output", "x") else f"_orig_mod.{name}"
            assert_accurate(name, got[key], exact[name], gradient=name != "output")


# --- parameters ----------------------------------------------------------------------------------------------------


def test_names_and_shapes_are_the_originals():
    C, D, N, R = 32, 64, 16, 2
    assert {name: tuple(value.shape) for name, value in SS2D(C).state_dict().items()} == {
        "in_proj.weight": (2 * D, C),
        "conv2d.weight": (D, 1, 3, 3),
        "conv2d.bias": (D,),
        "x_proj_weight": (4, R + 2 * N, D),
        "dt_projs_weight": (4, D, R),
        "dt_projs_bias": (4, D),
        "A_logs": (4 * D, N),
        "Ds": (4 * D,),
        "out_norm.weight": (D,),
        "out_norm.bias": (D,),
        "out_proj.weight": (C, D),
    }


@pytest.mark.parametrize(("d_model", "count"), [(32, 20736), (48, 36480), (64, 55808), (128, 168960), (256, 567296)])
def test_parameter_counts(d_model, count):
    assert sum(p.numel() for p in SS2D(d_model, device="meta").parameters()) == count


def test_hooks_of_the_input_projection_are_called_in_training():
    layer, x, seen = SS2D(8, 4), torch.randn(2, 5, 7, 8), []
    y = layer(x)
    layer.in_proj.register_forward_hook(lambda *_: seen.append(True))
    torch.testing.assert_close(layer(x), y)
    assert seen


def test_state_dict_round_trip():
    layer, other = perturbed(SS2D(**V0)), SS2D(**V0)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(1, 4, 5, 6)
    assert torch.equal(layer(x), other(x))


def test_init_v0():
    layer = SS2D(32, d_state=5, dt_rank=4)
    assert torch.equal(layer.A_logs, torch.arange(1, 6.0).log().expand(4 * 64, -1))
    assert torch.equal(layer.Ds, torch.ones(4 * 64))
    step = F.softplus(layer.dt_projs_bias)
    assert step.min() >= 0.99e-3
    assert step.max() <= 1.01e-1
    assert step.log10().mean().item() == pytest.approx(-2, abs=0.2)
    for weight, bound in ((layer.dt_projs_weight, 4**-0.5), (layer.x_proj_weight, 64**-0.5)):
        assert 0.9 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_init_v0_gives_the_steps_back():
    bias = SS2D(8, dt_min=0.5, dt_max=0.5).dt_projs_bias
    torch.testing.assert_close(F.softplus(bias), torch.full_like(bias, 0.5))


def test_init_v1_and_v2():
    first, second = SS2D(32, init="v1"), SS2D(32, init="v2")
    assert first.A_logs.std().item() == pytest.approx(1, rel=0.1)
    assert first.dt_projs_weight.std().item() == pytest.approx(0.1, rel=0.2)
    assert not second.A_logs.any()
    assert second.dt_projs_bias.min() >= 0
    assert 0.05 < second.dt_projs_bias.max() <= 0.1


def test_no_weight_decay_is_marked():
    layer = SS2D(8)
    assert {name for name, p in layer.named_parameters() if getattr(p, "_no_weight_decay", False)} == {"A_logs", "Ds"}


def test_dtype_and_device():
    layer = SS2D(8, dtype=torch.bfloat16)
    assert layer.in_proj.weight.dtype == layer.dt_projs_bias.dtype == torch.bfloat16
    assert layer.A_logs.dtype == layer.Ds.dtype == torch.float32
    assert layer(torch.randn(1, 3, 3, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert {p.device.type for p in SS2D(8, device="meta").parameters()} == {"meta"}
    assert {p.dtype for p in SS2D(8, dtype=torch.float64).parameters()} == {torch.float64}


def test_repr_names_the_options():
    shown = repr(SS2D(32, d_state=4, gate="linear"))
    assert "d_model=32, d_inner=64, d_state=4, dt_rank=2, d_conv=3, gate='linear'" in shown


# --- edge cases -------------------------------------------------------------------------------------------------------


def test_dropout_only_in_training():
    layer = SS2D(**V0, dropout=0.5)
    x = torch.randn(1, 8, 8, 6)
    y = layer.eval()(x)
    assert torch.equal(y, layer(x))
    dropped = layer.train()(x)
    kept = dropped != 0
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(dropped[kept], 2 * y[kept])


def test_empty_batch(backend):
    layer = SS2D(**V0)
    y = layer(torch.randn(0, 5, 4, 6))
    assert y.shape == (0, 5, 4, 6)
    y.sum().backward()
    assert not layer.A_logs.grad.any()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (9, 1), (6, 11)])
def test_odd_sizes(height, width):
    layer = perturbed(SS2D(**V0, dtype=torch.float64))
    x = torch.randn(2, height, width, 6, dtype=torch.float64)
    assert_accurate("output", layer(x), plain(layer, x))


def test_strided_input():
    layer = SS2D(**V0)
    x = torch.randn(2, 6, 5, 4)  # channels-first in memory
    view = x.permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(view), layer(view.contiguous()))


def test_repeats_bit_by_bit(gradients):
    layer = SS2D(16)
    x = torch.randn(2, 9, 7, 16)
    first, second = gradients(layer, x, "auto"), gradients(layer, x, "auto")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 0}, "d_model: expected a number above 0, got 0"),
        ({"d_state": 0}, "d_state"),
        ({"ssm_ratio": 0.01}, "ssm_ratio: expected at least one channel for the scan, got 0.01 of 8"),
        ({"dt_rank": 0}, "dt_rank"),
        ({"d_conv": 4}, "d_conv: expected an odd number"),
        ({"gate": "tanh"}, "gate: expected one of 'silu', 'linear', None, got 'tanh'"),
        ({"norm": "batch"}, "norm"),
        ({"init": "v3"}, "init"),
        ({"dropout": 1.0}, "dropout"),
        ({"dt_min": 0.0}, "dt_min"),
        ({"dt_max": 1e-4}, "dt_max: expected at least dt_min = 0.001, got 0.0001"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SS2D(**{"d_model": 8} | options)


def test_bad_input():
    layer = SS2D(8)
    with pytest.raises(ValueError, match=r"x: expected shape \(B, H, W, 8\).*got \(1, 8, 4, 4\)"):
        layer(torch.randn(1, 8, 4, 4))
    with pytest.raises(ValueError, match="4 dimensions"):
        layer(torch.randn(4, 4, 8))
    with pytest.raises(ValueError, match="H and W at least 1"):
        layer(torch.randn(1, 0, 4, 8))
    with pytest.raises(TypeError, match="x: expected float32"):
        layer(torch.ones(1, 4, 4, 8, dtype=torch.int64))
    with pytest.raises(TypeError, match="x: expected a tensor, got list"):
        layer([1.0])
    with mtlkit.use_backend("triton"), pytest.raises(ValueError, match="triton"):
        layer(torch.randn(1, 4, 4, 8))
