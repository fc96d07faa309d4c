"""The four-view networks: forms of input, missing views, shared and view-specific backbones, tasks, errors."""

import pytest
import torch
from torch.nn import functional as F

from mtlkit.models import create_model
from mtlkit.models.hybrid_vssm import VIEWS


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("hybrid_vssm").eval()


def exams(batch: int = 2, size: int = 64) -> torch.Tensor:
    return torch.rand(batch, 4, 3, size, size)


def assert_same(got, expected):
    for name in expected._fields:
        torch.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=1e-5, atol=1e-6)


def test_backbone_counts():
    for depths, count in (((1, 1), 1_431_168), ((2, 2), 2_047_168)):
        backbone = create_model("hybrid_vssm", depths=depths, device="meta").backbones["all"]
        assert sum(p.numel() for p in backbone.parameters()) == count


def test_equations(model):
    views = exams()
    out = model(views)
    features = torch.stack([model.backbones["all"](views[:, i]) for i in range(4)], 1)  # (B, 4, D)
    gates = model.fusion.fc2(model.fusion.fc1(features.flatten(1)).relu()).softmax(1)
    fused = torch.cat([gates[:, i, None] * features[:, i] for i in range(4)], 1)
    torch.testing.assert_close(out.gates, gates)
    for task, logits in (("label", out.label_logits), ("birads", out.birads_logits)):
        for i, side in enumerate(("left", "right")):
            torch.testing.assert_close(logits[:, i], model.heads[f"{task}_{side}"](fused))


def test_dictionaries_and_tensors_agree(model):
    views = exams()
    assert_same(model({name: views[:, i] for i, name in enumerate(VIEWS)}), model(views))
    present = torch.tensor([True, False, True, False]).expand(2, -1)
    some = {name: views[:, i] for i, name in enumerate(VIEWS) if present[0, i]}
    assert_same(model(some), model(views, present))


def test_absent_views_are_zeros_whatever_they_hold(model):
    views = exams()
    present = torch.tensor([[True, True, False, True], [True, True, True, True]])
    out = model(views, present)
    zeros, nothing = views.clone(), views.clone()
    zeros[0, 2], nothing[0, 2] = 0, float("nan")
    assert_same(model(zeros), out)
    assert_same(model(nothing, present), out)
    assert (out.gates > 0).all()


def test_absent_views_get_no_weight_with_the_mask(model):
    masked = create_model("hybrid_vssm", mask_missing=True).eval()
    masked.load_state_dict(model.state_dict())
    views = exams()
    present = torch.tensor([[True, True, False, True], [True] * 4])
    out = masked(views, present)
    assert torch.equal(out.gates > 0, present)
    torch.testing.assert_close(out.gates.sum(1), torch.ones(2))
    assert_same(masked(views), model(views))
    torch.testing.assert_close(out.label_logits[1], model(views).label_logits[1])


def test_a_missing_side_leaves_loss_and_gradients_finite():
    model = create_model("hybrid_vssm", mask_missing=True, drop_path_rate=0.0).train()
    present = torch.tensor([[True, True, False, False]] * 3)
    out = model(exams(3), present)
    loss = F.cross_entropy(out.label_logits[:, 0], torch.tensor([0, 1, 1]))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        if "birads" in name:
            assert parameter.grad is None, name
        else:
            assert parameter.grad.isfinite().all(), name
    assert model.heads["label_left"].weight.grad.any()
    assert not model.heads["label_right"].weight.grad.any()


def test_view_specific_backbones_serve_their_projection():
    model = create_model("hybrid_vssm", shared=False).eval()
    views = exams()
    captured = {}
    for name in ("cc", "mlo"):
        model.backbones[name].register_forward_hook(
            lambda _, given, y, name=name: captured.update({name: (given[0], y)})
        )
    features = model._features(views)
    assert torch.equal(captured["cc"][0], views[:, [0, 2]].flatten(0, 1))
    assert torch.equal(captured["mlo"][0], views[:, [1, 3]].flatten(0, 1))
    for i, name in enumerate(("cc", "mlo", "cc", "mlo")):
        torch.testing.assert_close(features[:, i], captured[name][1].unflatten(0, (2, 2))[:, i // 2])


@pytest.mark.parametrize("task", ["label", "birads"])
def test_single_tasks(task):
    model = create_model("hybrid_vssm", tasks=(task,), label_classes=3, birads_classes=4).eval()
    out = model(exams(1))._asdict()
    other = "birads" if task == "label" else "label"
    assert out[f"{other}_logits"] is None
    assert out[f"{task}_logits"].shape == (1, 2, 3 if task == "label" else 4)
    assert not any(other in name for name in model.state_dict())


@pytest.mark.parametrize(("name", "dim"), [("hybrid_vssm", 256), ("mammo_vssm", 768), ("mammo_resnet18", 512)])
def test_backbones_and_odd_sizes(name, dim):
    model = create_model(name).eval()
    assert model.fusion.dim == dim
    assert model(torch.rand(1, 4, 3, 45, 70)).birads_logits.shape == (1, 2, 5)


def test_bad_input(model):
    views = exams(3)
    with pytest.raises(ValueError, match=r"views: expected shape \(B, 4, C, H, W\), got \(3, 3, 3, 64, 64\)"):
        model(views[:, :3])
    with pytest.raises(ValueError, match="views: expected 5 dimensions, got 4"):
        model(views[:, 0])
    with pytest.raises(ValueError, match=r"expected shape \(B, 3, H, W\) with H and W at least 32, got \(3, 1, 64"):
        model(views[:, :, :1])
    with pytest.raises(ValueError, match="at least 32"):
        model(views[..., :31])
    present = torch.ones(3, 4, dtype=torch.bool)
    present[1] = False
    with pytest.raises(
        ValueError, match=r"present: expected at least one view of each patient, got none in rows \[1\]"
    ):
        model(views, present)
    with pytest.raises(ValueError, match=r"present: expected shape \(B, V\) = \(3, 4\), got \(4,\)"):
        model(views, present[0])
    with pytest.raises(TypeError, match=r"present: expected a boolean tensor, got torch.float32"):
        model(views, present.float())


def test_bad_dictionaries(model):
    view = torch.rand(2, 3, 64, 64)
    with pytest.raises(ValueError, match=r"views: expected some of the keys l_cc, l_mlo, r_cc, r_mlo, got \[\]"):
        model({})
    with pytest.raises(ValueError, match=r"expected some of the keys .*got \['l_cc', 'top'\]"):
        model({"l_cc": view, "top": view})
    with pytest.raises(ValueError, match=r"views\['r_cc'\]: expected shape \(2, 3, 64, 64\) as in l_cc, got \(1,"):
        model({"l_cc": view, "r_cc": view[:1]})
    with pytest.raises(ValueError, match="present: expected None with a dictionary"):
        model({"l_cc": view}, torch.ones(2, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vit"}, "backbone: expected one of 'hybrid', 'vssm', 'resnet18', 'resnet50', got 'vit'"),
        ({"tasks": ()}, "tasks: expected some of label, birads in this order"),
        ({"tasks": ("birads", "label")}, "tasks: expected some of"),
        ({"dims": (64, 128)}, "dims: expected 128, the channels of ResNet-18"),
        ({"depths": (1,)}, "depths: expected 2 numbers of blocks"),
        ({"backbone": "vssm", "pretrained": True}, "pretrained, freeze_until: expected False and None"),
        ({"birads_classes": 0}, "birads_classes: expected at least 1"),
        ({"dropout": -0.1}, "dropout: expected a probability"),
        ({"fusion_hidden": 0}, "hidden: expected a number above 0"),
        ({"in_chans": 2}, "in_chans: expected 1 or 3"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("hybrid_vssm", **options, device="meta")
