"""CSA-MoE-Net: published counts and FLOPs, the input of each expert, the gate, options, errors."""

import pytest
import timm
import torch
from torch import Tensor, nn

from mtlkit.models import create_model

PLAIN = {"experts": ("image",), "csa": False}


def lesions(batch: int = 2, size: int = 64) -> tuple[Tensor, Tensor]:
    masks = torch.zeros(batch, 1, size, size)
    masks[:, :, size // 5 : size // 2, size // 4 : -size // 5] = 1
    return torch.rand(batch, 3, size, size), masks


# --- published numbers ------------------------------------------------------------------------------------------------


def multiplications(model: nn.Module, *given: Tensor) -> int:
    """Counts like thop: multiply-adds of convolutions and linear layers, four per element of BatchNorm, no pooling."""
    total = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            total += 4 * given[0].numel()

    for module in model.modules():
        module.register_forward_hook(count)
    model(*given)
    return total


@pytest.mark.parametrize(
    ("name", "options", "published", "reproduced"),
    [
        ("csa_moe", PLAIN, 1.824, 1_823_522_816),
        ("csa_moe_densenet121", PLAIN, 2.896, 2_895_985_152),
        ("csa_moe", {"csa": False}, 5.471, 5_470_665_152),
        ("csa_moe", {}, 5.472, 5_471_525_312),
        ("csa_moe", {"csa": False, "head": "mlp"}, 5.471, 5_470_994_112),
        ("csa_moe", {"head": "mlp"}, 5.472, 5_471_854_272),
        ("csa_moe_vgg16", {"csa": False, "head": "mlp"}, 46.040, 46_040_300_000),
        ("csa_moe_vgg16", {"head": "mlp"}, 46.041, 46_041_200_000),
    ],
)
def test_flops(name, options, published, reproduced):
    model = create_model(name, **options, device="meta").eval()
    images, masks = torch.rand(1, 3, 224, 224, device="meta"), torch.zeros(1, 1, 224, 224, device="meta")
    count = multiplications(model, images, masks)
    assert count == pytest.approx(reproduced, abs=5e5)
    assert count / 1e9 == pytest.approx(published, abs=1e-3)


def test_flops_and_parameters_of_plain_vgg16():
    with torch.device("meta"):
        model = timm.create_model("vgg16", num_classes=2).eval()
    assert sum(p.numel() for p in model.parameters()) == 134_268_738
    assert multiplications(model, torch.rand(1, 3, 224, 224, device="meta")) == pytest.approx(15_466_226_688, abs=5e5)


@pytest.mark.parametrize(("csa", "published"), [(False, 415_500_925), (True, 416_412_349)])
def test_published_counts_of_vgg16_hold_its_unused_classifier(csa, published):
    with torch.device("meta"):
        whole = timm.create_model("vgg16", num_classes=1000)
    unused = sum(p.numel() for name, p in whole.named_parameters() if not name.startswith("features"))
    model = create_model("csa_moe_vgg16", csa=csa, head="mlp", device="meta")
    assert sum(p.numel() for p in model.parameters()) + 3 * unused == published


def test_cross_stage_attention_adds_the_published_difference():
    with_csa, without = (create_model("csa_moe", csa=csa, device="meta") for csa in (True, False))
    counts = [sum(p.numel() for p in model.parameters()) for model in (with_csa, without)]
    assert counts[0] - counts[1] == 862_272


# --- the experts ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("csa_moe").eval()


def test_equations(model):
    images, masks = lesions()
    out = model(images, masks)
    views = model.views(images, masks)
    features, alphas = [], []
    for name, view in views._asdict().items():
        expert = model.experts[name]
        stages = expert.encoder(view)[1:]
        last, alpha = expert.csa(stages)
        features.append(last.mean((2, 3)))
        alphas.append(alpha)
    fused = sum(out.gates[:, e, None] * feature for e, feature in enumerate(features))
    torch.testing.assert_close(out.cls_logits, model.head(fused))
    torch.testing.assert_close(out.stages, torch.stack(alphas, 1))
    torch.testing.assert_close(out.gates.sum(1), torch.ones(2))
    torch.testing.assert_close(out.stages.sum(2), torch.ones(2, 3))


def test_each_expert_sees_its_view_only(model):
    images, masks = lesions()
    far = images.clone()
    far[:, :, -3:] += 1  # outside the core and the band
    alphas, moved = model(images, masks).stages, model(far, masks).stages
    assert not torch.equal(alphas[:, 0], moved[:, 0])
    assert torch.equal(alphas[:, 1:], moved[:, 1:])


def test_identical_experts_fuse_to_their_feature():
    model = create_model("csa_moe", experts=("tumor", "boundary"), csa=False).eval()
    model.experts["boundary"] = model.experts["tumor"]
    images, _ = lesions()
    one = model.experts["tumor"](torch.zeros_like(images))[0]
    torch.testing.assert_close(model(images, torch.zeros(2, 1, 64, 64)).cls_logits, model.head(one))


def test_one_expert_is_a_plain_network():
    model = create_model("csa_moe", csa=False, experts=["image"]).eval()
    net = timm.create_model("resnet18", num_classes=2).eval()
    net.load_state_dict(model.experts["image"].encoder.state_dict(), strict=False)
    net.fc.load_state_dict(model.head.state_dict())
    images, masks = lesions()
    out = model(images)
    torch.testing.assert_close(out.cls_logits, net(images))
    assert torch.equal(out.cls_logits, model(images, masks).cls_logits)
    assert out.gates.tolist() == [[1], [1]]
    assert out.stages is None


def test_any_size_from_the_stride_on(model):
    images, masks = lesions(size=71)
    assert model(images[:, :, :33], masks[:, :, :33]).cls_logits.isfinite().all()
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 3, H, W\) with H and W at least 32"):
        model(images[:, :, :31], masks[:, :, :31])


def test_bad_input(model):
    images, masks = lesions()
    with pytest.raises(ValueError, match="masks: expected the lesion masks for the experts image, tumor, boundary"):
        model(images)
    with pytest.raises(ValueError, match=r"masks: expected shape \(B, 1, H, W\) = \(2, 1, 64, 64\), got \(2, 64, 64\)"):
        model(images, masks[:, 0])
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 3, H, W\)"):
        model(images[:, :1], masks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": ()}, "experts: expected some of image, tumor, boundary in this order, got"),
        ({"experts": ("boundary", "image")}, "experts: expected some of"),
        ({"experts": ("lesion",)}, "experts: expected some of"),
        ({"encoder": "resnet19"}, "encoder: there is no encoder 'resnet19' .*there are: densenet121"),
        ({"head": "conv"}, "head: expected one of 'linear', 'mlp', got 'conv'"),
        ({"num_classes": 0}, "num_classes: expected at least 1"),
        ({"in_chans": 2}, "in_chans: expected 1 or 3"),
        ({"dropout": 1.5}, "dropout: expected a probability"),
        ({"iterations": 0}, "iterations"),
        ({"exprts": ("image",)}, "exprts: csa_moe has no such option .did you mean 'experts'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        create_model("csa_moe", **options, device="meta")
