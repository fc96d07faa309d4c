"""TIM and UPA as one level: golden values, fused and composed, gradients, batch dependence, modes, edge cases."""

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn

import mtlkit
from mtlkit.nn import InteractionLevel, TaskInteraction, UncertaintyProxyAttention
from mtlkit.testing import assert_accurate

TOLERANCE = 1e-5
FORMS = {
    "variance": {},
    "running": {"normaliser": "running"},
    "alignment": {"signals": "alignment"},
    "attention": {"signals": "alignment", "pooling": "attention", "tau": 0.3},
}
CUT = {
    "to the class": {"signals": "alignment", "directions": ("seg_to_clf",)},
    "to the class, attention": {"pooling": "attention", "directions": ("seg_to_clf",)},
    "to the mask": {"directions": ("clf_to_seg",)},
    "to the mask, running": {"normaliser": "running", "directions": ("clf_to_seg",)},
    "to the mask, alignment": {"signals": "alignment", "directions": ("clf_to_seg",)},
}


def level(form: str, dim: int = 6, **kw) -> InteractionLevel:
    """A level with every parameter and statistic moved from its initial value."""
    made = InteractionLevel(dim, 10, **(FORMS | CUT)[form], **kw)
    with torch.no_grad():
        for name, value in (*made.named_parameters(), *made.named_buffers()):
            if value.is_floating_point():
                value.add_(0.2 * torch.rand_like(value) if "running" in name else 0.2 * torch.randn_like(value))
    return made


def data(dim: int = 6, batch: int = 3, **kw) -> tuple[torch.Tensor, torch.Tensor]:
    # images with different means, so that hidden units are active for some of them
    return torch.randn(batch, dim, 7, 5, **kw) + torch.randn(batch, dim, 1, 1, **kw), torch.randn(batch, 10, **kw)


def count(layer: nn.Module) -> int:
    """Counts like Keras, which includes the running statistics of batch normalisation."""
    kept = ("num_batches_tracked", "running_signals")
    return sum(t.numel() for name, t in layer.state_dict().items() if not name.endswith(kept))


# --- golden values ---------------------------------------------------------------------------------------------------


# --- the level -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*FORMS, *CUT])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_level_is_its_two_layers(backend, form, training):
    fused = level(form, dtype=torch.float64).train(training)
    composed = copy.deepcopy(fused)
    seg, clf = data(dtype=torch.float64)
    out = fused(seg, clf, return_enhanced=True)
    enhanced = composed.tim(seg, clf)
    wanted = composed.upa(seg, enhanced.seg, clf, enhanced.clf)
    for name in ("seg", "clf", "gates", "enhanced_seg", "enhanced_clf"):
        assert_accurate(name, getattr(out, name), getattr(wanted, name))
    for name, value in fused.state_dict().items():
        torch.testing.assert_close(value, composed.state_dict()[name])
    assert fused(seg, clf).enhanced_seg is None


@pytest.mark.parametrize("form", [*FORMS, *CUT])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("other", ["torch", "cpu"])
def test_gradients_of_every_parameter(form, training, other):
    made = level(form, dtype=torch.float64).train(training)
    seg, clf = data(batch=6, dtype=torch.float64)

    def run(backend: str) -> dict[str, torch.Tensor]:
        layer = copy.deepcopy(made)
        inputs = [t.clone().requires_grad_() for t in (seg, clf)]
        with mtlkit.use_backend(backend):
            out = layer(*inputs)
        generator = torch.Generator().manual_seed(1)
        parts = (out.seg, out.clf, out.gates, *out.stats)
        sum((torch.randn(t.shape, generator=generator, dtype=t.dtype) * t).sum() for t in parts).backward()
        found = {name: p.grad for name, p in layer.named_parameters()}
        return found | {"seg": inputs[0].grad, "clf": inputs[1].grad, "out": out.seg.detach()}

    exact, got = run("reference"), run(other)
    for name, value in exact.items():
        assert_accurate(name, got[name], value, gradient=True)


@pytest.mark.parametrize("form", CUT)
def test_a_direction_that_is_cut_leaves_its_branch_and_has_no_layers(backend, form):
    made = level(form).eval()
    seg, clf = data()
    out, moved = made(seg, clf, return_enhanced=True), made.tim(seg, clf)
    layers = {name for name, _ in made.tim.named_children()} - {"s2c_attn"}
    if "seg_to_clf" in made.tim.directions:
        assert torch.equal(out.seg, seg)
        assert torch.equal(out.enhanced_seg, seg)
        assert torch.equal(moved.mu, torch.ones(3, 6))
        assert not torch.allclose(out.clf, clf)
        assert layers == {"s2c_conv", "s2c_dense", "s2c_bn", "clf_gate"}
    else:
        assert torch.equal(out.clf, clf)
        assert torch.equal(moved.clf, clf)
        assert not torch.allclose(out.seg, seg)
        assert layers == {"c2s_dense", "seg_gate"}
    if made.upa.signals == "alignment":
        assert torch.equal(out.stats.alignment, torch.zeros(3))


@pytest.mark.parametrize("form", FORMS)
def test_given_gates_stand_in_where_they_are_numbers(backend, form):
    made = level(form).eval()
    seg, clf = data()
    learnt, nan = made(seg, clf, return_enhanced=True), float("nan")
    given = torch.tensor([[0.0, nan], [1.0, 0.0], [nan, 0.25]])
    out = made(seg, clf, gates=given)
    assert torch.equal(out.gates.isnan(), torch.zeros(3, 2, dtype=torch.bool))
    torch.testing.assert_close(out.gates, torch.where(given.isnan(), learnt.gates, given))
    w_seg, w_clf = out.gates[:, 0, None, None, None], out.gates[:, 1:]
    torch.testing.assert_close(out.seg, seg + w_seg * (learnt.enhanced_seg - seg))
    torch.testing.assert_close(out.clf, clf + w_clf * (learnt.enhanced_clf - clf))
    torch.testing.assert_close(out.stats, learnt.stats)


def test_map_is_amplified_by_at_most_tau():
    tim = TaskInteraction(6, 10).eval()
    seg, clf = data()
    mu = tim(seg, clf).mu
    assert mu.min() >= 1
    assert mu.max() <= 1.7
    assert torch.equal(TaskInteraction(6, 10, tau=0).eval()(seg, clf).seg, seg)


def test_closed_gate_leaves_the_vector():
    tim = TaskInteraction(6, 10).eval()
    with torch.no_grad():
        tim.clf_gate.weight.zero_()
        tim.clf_gate.bias.fill_(-1e4)
    seg, clf = data()
    assert torch.equal(tim(seg, clf).clf, clf)


@pytest.mark.parametrize("signals", ["variance", "alignment"])
def test_gates_at_their_ends(backend, signals):
    upa = UncertaintyProxyAttention(6, 10, signals)
    nn.init.zeros_(upa.fc2.weight)
    seg, clf = data()
    enhanced = 2 * seg + 1, 3 * clf - 1
    with torch.no_grad():
        upa.fc2.bias.copy_(torch.tensor([1e4, -1e4]))
    out = upa(seg, enhanced[0], clf, enhanced[1])
    torch.testing.assert_close(out.seg, enhanced[0])
    assert torch.equal(out.clf, clf)


# --- dependence of the outputs ----------------------------------------------------------------------------------------


def test_batch_normaliser_looks_at_the_batch():
    made = level("variance").eval()
    seg, clf = data()
    out = made(seg, clf)
    torch.testing.assert_close(out.gates.sum(1), torch.ones(3))
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(made(seg[order], clf[order]).seg, out.seg[order])
    other = torch.cat((seg[:2], 9 * seg[2:]))
    assert not torch.allclose(made(other, clf).gates[:2], out.gates[:2], rtol=1e-3)


def test_batch_normaliser_makes_constants_of_a_batch_of_one(backend):
    made = level("variance").eval()
    first, second = made(*data(batch=1)), made(*data(batch=1))
    torch.testing.assert_close(first.gates, second.gates)
    u = torch.ones(1, 2)
    torch.testing.assert_close(first.gates, made.upa.fc2(made.upa.fc1(u).relu()).softmax(1))


@pytest.mark.parametrize("form", ["running", "alignment"])
def test_output_depends_on_its_image_alone(backend, form):
    made = level(form).eval()
    seg, clf = data()
    alone = [made(seg[i : i + 1], clf[i : i + 1]) for i in range(3)]
    together = made(seg, clf)
    torch.testing.assert_close(together.seg, torch.cat([out.seg for out in alone]))
    torch.testing.assert_close(together.gates, torch.cat([out.gates for out in alone]))
    assert together.gates.std(0).min() > 1e-4


def test_running_signals_are_averaged():
    upa = UncertaintyProxyAttention(6, 10, normaliser="running", momentum=0.25)
    assert upa.running_signals.tolist() == [1, 1]
    means = []
    for i in range(6):
        seg, clf = data()
        stats = upa.train()(seg, (i + 1) * seg, clf, clf).stats
        means.append(torch.stack((stats.seg.mean(), stats.clf.mean())))
        if i < 4:
            torch.testing.assert_close(upa.running_signals, torch.stack(means).mean(0))
    average = torch.stack(means[:4]).mean(0)
    for value in means[4:]:
        average = 0.75 * average + 0.25 * value
    torch.testing.assert_close(upa.running_signals, average)
    upa.eval()(seg, 9 * seg, clf, clf)
    torch.testing.assert_close(upa.running_signals, average)
    assert upa.num_batches_tracked == 6


def test_running_signals_stay_out_of_an_empty_batch():
    upa = UncertaintyProxyAttention(6, 10).train()
    seg, clf = data(batch=0)
    assert upa(seg, seg, clf, clf).seg.shape == (0, 6, 7, 5)
    assert upa.running_signals.tolist() == [1, 1]


def test_training_follows_the_batch_whatever_the_normaliser():
    running = level("running").train()
    batch = copy.deepcopy(running)
    batch.upa.normaliser = "batch"
    seg, clf = data()
    assert torch.equal(running(seg, clf).seg, batch(seg, clf).seg)
    assert not torch.allclose(running.eval()(seg, clf).gates, batch.eval()(seg, clf).gates)


def test_batch_normalisation_is_updated_in_training():
    tim = TaskInteraction(6, 10).train()
    seg, clf = data()
    context = tim.s2c_dense(tim.s2c_conv(seg).relu().mean((2, 3))).relu()
    tim(seg, clf)
    torch.testing.assert_close(tim.s2c_bn.running_mean, 0.01 * context.mean(0))
    torch.testing.assert_close(tim.s2c_bn.running_var, 0.99 + 0.01 * context.var(0))
    assert tim.s2c_bn.num_batches_tracked == 1


# --- module behaviour -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_autocast(form):
    made = level(form).eval()
    seg, clf = data()
    wanted = made(seg, clf)
    with torch.autocast("cpu", torch.bfloat16):
        got = made(seg.bfloat16(), clf)
    assert got.seg.dtype == torch.bfloat16
    torch.testing.assert_close(got.seg.float(), wanted.seg, atol=0.05, rtol=0.05)
    torch.testing.assert_close(got.gates.float(), wanted.gates, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("form", ["variance", "alignment"])
def test_bfloat16_parameters(form):
    made = level(form, dtype=torch.bfloat16).eval()
    seg, clf = data(dtype=torch.bfloat16)
    out = made(seg, clf)
    assert out.seg.dtype == out.clf.dtype == torch.bfloat16
    wanted = copy.deepcopy(made).float()(seg.float(), clf.float())
    torch.testing.assert_close(out.seg.float(), wanted.seg, atol=0.03, rtol=0.03)


@pytest.mark.parametrize("form", ["variance", "alignment"])
def test_compiles_whole_and_once(form):
    made = level(form, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(made), fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3, 5):
        seg, clf = data(batch=batch, dtype=torch.float64)
        seg.requires_grad_()
        with torch._dynamo.config.patch(error_on_recompile=batch > 2):
            got = compiled(seg, clf)
        (got_gradient,) = torch.autograd.grad(got.seg.square().sum(), seg)
        exact = made(seg, clf)
        (exact_gradient,) = torch.autograd.grad(exact.seg.square().sum(), seg)
        assert_accurate("seg", got.seg, exact.seg)
        assert_accurate("gradient", got_gradient, exact_gradient, gradient=True)
    torch.testing.assert_close(compiled.state_dict(), {f"_orig_mod.{k}": v for k, v in made.state_dict().items()})


def test_copies_and_options():
    made = level("running").eval()
    seg, clf = data()
    wanted = made(seg, clf).seg
    fresh = InteractionLevel(6, 10, normaliser="running").eval()
    fresh.load_state_dict(made.state_dict())
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), fresh):
        assert torch.equal(other(seg, clf).seg, wanted)
    shown = repr(made)
    assert "dim=6, clf_dim=10, tau=0.7, pooling='mean'" in shown
    assert "dim=6, clf_dim=10, signals='variance', normaliser='running'" in shown
    assert {t.device.type for t in InteractionLevel(6, device="meta").state_dict().values()} == {"meta"}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_memory_format_is_kept(backend, memory_format):
    made = level("alignment").eval()
    seg, clf = data()
    out = made(seg.contiguous(memory_format=memory_format), clf)
    assert out.seg.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(out.seg, made(seg, clf).seg)


@pytest.mark.parametrize("form", FORMS)
def test_single_pixel_and_odd_channels(backend, form):
    made = level(form, dim=5).eval()
    seg, clf = torch.randn(2, 5, 1, 1), torch.randn(2, 10)
    out = made(seg, clf)
    with mtlkit.use_backend("reference"):
        torch.testing.assert_close(out.seg, made(seg, clf).seg)
    assert made.tim.s2c_conv.weight.shape == (2, 5, 1, 1)


# --- bad options and input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 1}, "dim: expected at least 2 channels, got 1"),
        ({"clf_dim": 0}, "clf_dim: expected a number above 0, got 0"),
        ({"signals": "two"}, "signals: expected one of 'variance', 'alignment', got 'two'"),
        ({"normaliser": "ema"}, "normaliser: expected one of 'batch', 'running', got 'ema'"),
        ({"pooling": "max"}, "pooling: expected one of 'mean', 'attention', got 'max'"),
        ({"tau": -0.1}, "tau: expected a number that is at least 0, got -0.1"),
        ({"momentum": 1.0}, "momentum: expected a probability"),
        ({"directions": ()}, r"directions: expected one or more of seg_to_clf, clf_to_seg, in this order, got \(\)"),
        (
            {"directions": ("up",)},
            r"directions: expected one or more of seg_to_clf, clf_to_seg, in this order, got \('up',\)",
        ),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        InteractionLevel(**{"dim": 8} | options)


def test_bad_normaliser_after_the_fact():
    made = level("variance").eval()
    made.upa.normaliser = "none"
    with pytest.raises(ValueError, match="normaliser: expected one of 'batch', 'running', got 'none'"):
        made(*data())


def test_bad_input():
    seg, clf = data()
    for layer in (level("variance"), level("variance").tim):
        with pytest.raises(ValueError, match=r"seg: expected shape \(B, 6, H, W\) .*got \(3, 7, 5, 6\)"):
            layer(seg.permute(0, 2, 3, 1), clf)
        with pytest.raises(ValueError, match=r"seg: .*H and W at least 1, got \(3, 6, 0, 5\)"):
            layer(seg[:, :, :0], clf)
        with pytest.raises(ValueError, match=r"clf: expected shape \(B, C\) = \(3, 10\), got \(2, 10\)"):
            layer(seg, clf[:2])
        with pytest.raises(TypeError, match="clf: expected float32"):
            layer(seg, clf.long())
    with pytest.raises(ValueError, match=r"gates: expected shape \(B, 2\).* = \(3, 2\), got \(2, 2\)"):
        level("variance")(seg, clf, gates=torch.zeros(2, 2))
    upa = level("variance").upa
    with pytest.raises(ValueError, match=r"x_enhanced: expected shape .*got \(3, 6, 7, 4\)"):
        upa(seg, seg[..., :4], clf, clf)
    with pytest.raises(ValueError, match=r"clf_enhanced: expected shape \(B, C\) = \(3, 10\), got \(3, 9\)"):
        upa(seg, seg, clf, clf[:, :9])
    with pytest.raises(ValueError, match="Expected more than 1 value"):
        level("variance").train()(seg[:1], clf[:1])


def test_meta_tensors_have_shapes():
    with torch.device("meta"):
        level = InteractionLevel(6, 4)
        output = level(torch.empty(2, 6, 3, 5), torch.empty(2, 4))
    assert output[0].shape == (2, 6, 3, 5)


# --- memory -----------------------------------------------------------------------------------------------------------


class Token:
    """Lives as long as the graph node that holds it."""


@pytest.mark.parametrize("form", FORMS)
def test_a_step_leaves_no_graph_behind(form, backend):
    made = level(form).train()
    seg, clf = data(requires_grad=True)
    above, token = 2 * seg, Token()
    above.grad_fn.metadata["token"], alive = token, weakref.ref(token)
    out = made(above, clf)
    (out.seg.square().sum() + out.clf.square().sum()).backward()
    del token
    assert alive() is not None
    del above, out
    assert alive() is None
