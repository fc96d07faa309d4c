"""MBDI and BTI-Net: published counts, agreement with the equations, gates, ablations, padding, errors."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import mtlkit
from mtlkit.models import create_model
from mtlkit.nn import TaskInteraction, UncertaintyProxyAttention

SMALL = {"encoder": "resnet18", "decoder_dims": (32, 24, 16, 12), "clf_dim": 32}
BOTH = ["mbdi", "btinet"]


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def keras_count(module: torch.nn.Module) -> int:
    """Keras also counts the moving statistics of BatchNorm."""
    running = ("running_mean", "running_var")
    return count(module) + sum(b.numel() for name, b in module.named_buffers() if name.endswith(running))


# --- published numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "total", "learns"), [("mbdi", 57_445_903, 57_275_504), ("btinet", 57_557_647, 57_387_248)]
)
def test_published_counts(name, total, learns):
    model = create_model(name, freeze_until="blocks.1.1.bn2", device="meta")
    assert keras_count(model) + 7 == total  # 7 values of Keras' input normalisation
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == learns


def test_counts_of_the_parts():
    model = create_model("mbdi", device="meta")
    assert keras_count(model.encoder) + 7 == 17_673_823
    assert [keras_count(block) for block in model.refine] == [138_423, 242_130, 726_051, 5_818_242, 20_179_030]
    assert [count(vector) for vector in model.vectors] == [459_008, 246_016, 86_272, 49_408]
    parts = {
        "up": (6_193_536, 663_744, 165_984, 41_520),
        "gate": (336_193, 71_329, 19_537, 6_313),
        "block": (1_819_779, 406_323, 110_067, 34_443),
    }
    for part, counts in parts.items():
        assert tuple(keras_count(getattr(level, part)) for level in model.decoder) == counts, part
    tims = [keras_count(level.interaction.tim) for level in model.decoder]
    assert tims == [436_672, 196_576, 118_000, 89_080]
    assert [count(level.interaction.upa) for level in model.decoder] == [162] * 4
    gates = create_model("btinet", device="meta").decoder
    assert [count(level.interaction.upa) for level in gates] == [41_154, 28_866, 22_722, 19_650]
    assert count(model.seg_head) == 10_392 + 3_472 + 17
    assert keras_count(model.cls_head) == 1_102_080 + 1_024 + 771


@pytest.mark.parametrize(("name", "published"), [("mbdi", 18.5156), ("btinet", 18.518)])
def test_flops(name, published):
    """TensorFlow's profiler, the source of these numbers, counts 1 % more because of element-wise operations."""
    model = create_model(name).eval()
    with FlopCounterMode(display=False) as counter, mtlkit.use_backend("torch"), torch.no_grad():
        model(torch.rand(1, 3, 224, 224))
    assert published * 0.98 < counter.get_total_flops() / 1e9 < published


def test_stage2_trains_the_gates_alone():
    model = create_model("btinet", device="meta")
    gates = model.stage2_parameters()
    assert sum(p.numel() for p in gates) == 112_392
    names = {name for name, p in model.named_parameters() if any(p is gate for gate in gates)}
    assert names == {name for name, _ in model.named_parameters() if ".upa." in name}
    with pytest.raises(ValueError, match="stage2_parameters: the network has no gates"):
        create_model("btinet", upa=False, device="meta").stage2_parameters()


# --- agreement with the equations -------------------------------------------------------------------------------------


def equations(model: torch.nn.Module, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The network from the equations: level by level, TIM and UPA separately, with the enhanced map."""
    s1, s2, s3, s4, bridge = (block(tap) for block, tap in zip(model.refine, model.encoder(images), strict=True))
    seg, vectors, gates = bridge, [], []
    for i, (skip, deeper) in enumerate(((s4, bridge), (s3, s4), (s2, s3), (s1, s2))):
        level = model.decoder[i]
        x = level.up(seg)
        base = level.block(torch.cat([x, level.gate(skip, x)], 1))
        f = F.relu(model.vectors[i](deeper.mean((2, 3))))
        if level.interaction is None:
            seg, clf = base, f
        elif isinstance(level.interaction, TaskInteraction):
            seg, clf = level.interaction(base, f)[:2]
        else:
            tim, upa = level.interaction.tim, level.interaction.upa
            enhanced, f_enhanced = tim(base, f)[:2]
            assert isinstance(upa, UncertaintyProxyAttention)
            w_seg, w_clf = upa(base, enhanced, f, f_enhanced).gates.unbind(1)
            seg = base + w_seg[:, None, None, None] * (enhanced - base)
            clf = f + w_clf[:, None] * (f_enhanced - f)
            gates.append(torch.stack((w_seg, w_clf), 1))
        vectors.append(clf)
    pooled = [e.mean((2, 3)) for e in (s2, s3, s4, bridge)]
    return model.seg_head(seg), model.cls_head(torch.cat([*pooled, *vectors], 1)), gates


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"upa": False},
        {"upa": False, "tim": False},
        {"levels": (2, 3)},
        {"hmsf": False, "pooling": "attention"},
        {"hmsf": False, "directions": ("seg_to_clf",)},
        {"hmsf": False, "directions": ("clf_to_seg",), "upa": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", BOTH)
def test_equations(name, options):
    model = create_model(name, **SMALL, **options).eval()
    images = torch.rand(2, 3, 64, 96)
    out = model(images)
    seg_logits, cls_logits, gates = equations(model, images)
    torch.testing.assert_close(out.seg_logits, seg_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.cls_logits, cls_logits, rtol=1e-4, atol=1e-5)
    if gates:
        torch.testing.assert_close(out.gates, torch.stack(gates, 1), rtol=1e-4, atol=1e-5)
    else:
        assert out.gates is None


def test_options_reach_the_layers():
    model = create_model("mbdi", **SMALL, hmsf=False, tau=0.3, normaliser="running", pooling="attention", dropout=0.1)
    assert not any("hmsf" in name for name, _ in model.named_parameters())
    for level in model.decoder:
        assert (level.interaction.tim.tau, level.interaction.tim.pooling) == (0.3, "attention")
        assert (level.interaction.upa.normaliser, level.interaction.upa.signals) == ("running", "variance")
        assert level.dropout.p == 0.1
    assert create_model("btinet", **SMALL, tau=0.3).decoder[0].interaction.tim.tau == 0.3


def test_tau_0_leaves_the_map():
    model = create_model("mbdi", **SMALL, tau=0.0).eval()
    without = create_model("mbdi", **SMALL, tim=False, upa=False).eval()
    without.load_state_dict({k: v for k, v in model.state_dict().items() if ".interaction." not in k})
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model(images).seg_logits, without(images).seg_logits)


# --- the gates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_gates_are_given_by_level_and_branch(name):
    options = SMALL | {"hmsf": False, "levels": (1, 4)}
    model = create_model(name, **options).eval()
    images, nan = torch.rand(3, 3, 32, 64), float("nan")
    free, plain = model.inspect(images), model(images)
    for field in plain._fields:
        torch.testing.assert_close(getattr(free, field), getattr(plain, field))
    assert free.signals[0].numel() == len(model.signal_names)
    assert model.gate_names == ("seg_level1", "clf_level1", "seg_level4", "clf_level4")

    closed = model.inspect(images, gates=dict.fromkeys(model.gate_names, 0.0))
    without = create_model(name, **options | {"tim": False, "upa": False}).eval()
    without.load_state_dict({k: v for k, v in model.state_dict().items() if ".interaction." not in k})
    torch.testing.assert_close(closed[:2], without(images)[:2])

    given = model.inspect(images, gates={"clf_level1": torch.tensor([1.0, nan, 0.5])})
    torch.testing.assert_close(given.gates[:, 0, 1], torch.stack([t := torch.tensor(1.0), plain.gates[1, 0, 1], t / 2]))
    torch.testing.assert_close(given.gates[:, :, 0], plain.gates[:, :, 0])
    torch.testing.assert_close(given.seg_logits, plain.seg_logits)  # vectors go only to the classifier
    assert (given.cls_logits - plain.cls_logits).abs().amax(1).gt(1e-6).tolist() == [True, False, True]


def test_signals_are_those_of_the_gates():
    model = create_model("btinet", **SMALL, hmsf=False, levels=(2,)).eval()
    assert model.signal_names == ("alignment_level2", "energy_level2", "spread_level2")
    out, upa = model.inspect(torch.rand(2, 3, 32, 64)), model.decoder[1].interaction.upa
    torch.testing.assert_close(upa.fc2(upa.fc1(out.signals[:, 0]).relu()).sigmoid(), out.gates[:, 0])
    assert create_model("mbdi", **SMALL, levels=(2,)).signal_names == ("seg_variance_level2", "clf_variance_level2")
    assert create_model("mbdi", **SMALL, upa=False).signal_names == ()
    assert create_model("mbdi", **SMALL, levels=()).eval().inspect(torch.rand(1, 3, 32, 32)).signals is None


def test_gates_that_there_are_not():
    model, images = create_model("btinet", **SMALL, levels=(2,)).eval(), torch.rand(2, 3, 32, 64)
    with pytest.raises(ValueError, match="gates: expected seg_level2, clf_level2, got 'seg_level1'"):
        model.inspect(images, gates={"seg_level1": 0})
    with pytest.raises(ValueError, match=r"gates\['seg_level2'\]: expected shape \(B,\) = \(2,\), got \(3,\)"):
        model.inspect(images, gates={"seg_level2": torch.zeros(3)})
    with pytest.raises(ValueError, match="gates: expected no names, because there are no gates, got 'seg_level2'"):
        create_model("btinet", **SMALL, upa=False).eval().inspect(images, gates={"seg_level2": 0})
    with pytest.raises(ValueError, match="gates: expected None, as CSAMoE has no gates to replace"):
        create_model("csa_moe", experts=("image",), device="meta").inspect(images, gates={"seg_level2": 0})


def test_gates_of_mbdi_share_out():
    gates = create_model("mbdi", **SMALL).eval()(torch.rand(3, 3, 64, 64)).gates
    torch.testing.assert_close(gates.sum(2), torch.ones(3, 4))


def test_gates_of_mbdi_depend_on_the_batch_unless_told_otherwise():
    model = create_model("mbdi", **SMALL).eval()
    images = torch.rand(3, 3, 64, 64)
    images[1] *= 3
    images[2] = images[2].round()
    gates = model(images).gates
    torch.testing.assert_close(model(images.flip(0)).gates, gates.flip(0), rtol=1e-4, atol=1e-5)
    assert (model(images[:2]).gates - gates[:2]).abs().max() > 1e-4
    torch.testing.assert_close(model(images[:1]).gates, model(images[1:2]).gates)  # constant, independent of the image
    for level in model.decoder:
        level.interaction.upa.normaliser = "running"
    torch.testing.assert_close(model(images[:2]).gates, model(images).gates[:2], rtol=1e-4, atol=1e-5)


def test_outputs_of_btinet_leave_the_batch_alone():
    model = create_model("btinet", **SMALL).eval()
    images = torch.rand(3, 3, 64, 64)
    for got, whole in zip(model(images[:1]), model(images), strict=True):
        torch.testing.assert_close(got, whole[:1], rtol=1e-4, atol=1e-5)


# --- sizes and errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTH)
def test_sizes_are_padded_and_cropped_back(name):
    model = create_model(name, **SMALL).eval()
    images = torch.rand(1, 3, 40, 65)
    padded = torch.zeros(1, 3, 64, 96)
    padded[:, :, :40, :65] = images
    out, whole = model(images), model(padded)
    assert torch.equal(out.seg_logits, whole.seg_logits[:, :, :40, :65])
    assert torch.equal(out.cls_logits, whole.cls_logits)


@pytest.mark.parametrize("name", BOTH)
def test_bad_images(name):
    model = create_model(name, **SMALL)
    with pytest.raises(
        ValueError, match=r"images: expected shape \(B, 3, H, W\) with H and W at least 32, got \(1, 3, 31"
    ):
        model(torch.rand(1, 3, 31, 64))
    with pytest.raises(ValueError, match=r"got \(1, 1, 64, 64\)"):
        model(torch.rand(1, 1, 64, 64))
    with pytest.raises(TypeError, match="images: expected float32"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tim": False}, "upa: expected False without tim, which it needs, got True"),
        ({"levels": (0, 1)}, r"levels: expected some of 1, 2, 3, 4 in this order, got \(0, 1\)"),
        ({"levels": (2, 1)}, "levels"),
        ({"decoder_dims": (8, 8, 8)}, r"decoder_dims: expected 4 numbers of at least 8, got \(8, 8, 8\)"),
        ({"decoder_dims": (32, 16, 8, 4)}, "decoder_dims"),
        ({"pooling": "max"}, "pooling: expected one of 'mean', 'attention', got 'max'"),
        ({"encoder": "efficientnet"}, "encoder: there is no encoder 'efficientnet'.*there are: densenet121"),
        ({"num_classes": 0}, "num_classes: expected at least 1"),
        ({"dropout": 1.0}, "dropout: expected a probability"),
        ({"tau": -1.0}, "tau"),
        ({"in_chans": 4}, "in_chans: expected 1 or 3"),
        ({"hmfs": False}, "hmfs: .* has no such option .did you mean 'hmsf'"),
    ],
)
@pytest.mark.parametrize("name", BOTH)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, **options, device="meta")


def test_bad_normaliser():
    with pytest.raises(ValueError, match="normaliser: expected one of 'batch', 'running', got 'ema'"):
        create_model("mbdi", normaliser="ema", device="meta")
    with pytest.raises(ValueError, match="normaliser: btinet has no such option"):
        create_model("btinet", normaliser="batch", device="meta")
