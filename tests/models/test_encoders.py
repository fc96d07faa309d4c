"""Encoders: feature levels, agreement with timm, pretrained weights, image channels, freezing, errors."""

import sys
from unittest.mock import patch

import pytest
import timm
import torch
from torch import nn

from mtlkit.models import Encoder, create_model, list_encoders
from mtlkit.training import list_configs, load_config

CHANNELS = {
    "densenet121": (64, 256, 512, 1024, 1024),
    "resnet18": (64, 64, 128, 256, 512),
    "resnet50": (64, 256, 512, 1024, 2048),
    "tf_efficientnet_b0": (96, 144, 240, 672, 1280),
    "tf_efficientnet_b1": (96, 144, 240, 672, 1280),
    "tf_efficientnet_b2": (96, 144, 288, 720, 1408),
    "tf_efficientnet_b3": (144, 192, 288, 816, 1536),
    "tf_efficientnet_b4": (144, 192, 336, 960, 1792),
    "tf_efficientnet_b5": (144, 240, 384, 1056, 2048),
    "tf_efficientnet_b6": (192, 240, 432, 1200, 2304),
    "tf_efficientnet_b7": (192, 288, 480, 1344, 2560),
    "vgg16": (64, 128, 256, 512, 512),
}


def test_no_encoder_is_missing_from_the_table():
    assert list_encoders() == sorted(CHANNELS)


@pytest.mark.parametrize("name", sorted(CHANNELS))
def test_channels_and_strides(name):
    encoder = Encoder(name, device="meta")
    assert encoder.channels == CHANNELS[name]
    assert encoder.strides == (2, 4, 8, 16, 32)
    shapes = [tuple(f.shape) for f in encoder(torch.rand(2, 3, 96, 64, device="meta"))]
    assert shapes == [(2, c, 96 // s, 64 // s) for c, s in zip(encoder.channels, encoder.strides, strict=True)]


OTHERS = {
    "resnet34": ((64, 64, 128, 256, 512), (2, 4, 8, 16, 32)),
    "efficientnet_b0": ((16, 24, 40, 112, 320), (2, 4, 8, 16, 32)),
    "vgg11": ((128, 256, 512, 512, 512), (2, 4, 8, 16, 32)),
    "swin_tiny_patch4_window7_224": ((96, 192, 384, 768), (4, 8, 16, 32)),
}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_any_network_of_timm(name):
    """Features of the timm network, channels first for any layout."""
    encoder = Encoder(name, in_chans=1)
    assert (encoder.channels, encoder.strides) == OTHERS[name]
    shapes = [tuple(f.shape) for f in encoder(torch.rand(1, 1, 224, 224))]
    assert shapes == [(1, c, 224 // s, 224 // s) for c, s in zip(*OTHERS[name], strict=True)]


def test_features_of_any_network_are_those_of_timm():
    encoder = Encoder("resnet34", freeze_until="layer1")
    assert {n for n, p in encoder.net.named_parameters() if not p.requires_grad} == {
        n for n, _ in encoder.net.named_parameters() if n.startswith(("conv1", "bn1", "layer1"))
    }
    assert not encoder.net.layer1[0].bn1.training
    assert encoder.net.layer2.training
    net = timm.create_model("resnet34")
    net.load_state_dict(encoder.net.state_dict(), strict=False)
    images = torch.rand(2, 3, 70, 64)
    expected = net.eval().forward_intermediates(images, intermediates_only=True)
    got = encoder.eval()(images)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images)[-1], got[-1])
    exported = torch.export.export(encoder, (images,)).module()
    torch.testing.assert_close(exported(images)[-1], got[-1])


def test_decoders_say_which_strides_they_need():
    words = r"encoder: expected strides of 2, 4, 8, 16, 32, got those of pvt_v2_b0: \(4, 8, 16, 32\)"
    for name in ("mbdi", "mtl_oca"):
        with pytest.raises(ValueError, match=words):
            create_model(name, encoder="pvt_v2_b0")


@pytest.mark.parametrize("name", ["tf_efficientnet_b0", "resnet18", "densenet121"])
def test_last_tap_is_the_output_of_timm(name):
    encoder = Encoder(name).eval()
    net = timm.create_model(name).eval()
    net.load_state_dict(encoder.state_dict(), strict=False)
    images = torch.rand(2, 3, 70, 64)
    torch.testing.assert_close(encoder(images)[-1], net.forward_features(images))


def test_taps_of_efficientnet_are_expansion_activations():
    encoder = Encoder("tf_efficientnet_b0").eval()
    net = timm.create_model("tf_efficientnet_b0").eval()
    net.load_state_dict(encoder.state_dict(), strict=False)
    seen = {}
    for i in (1, 2, 3, 5):
        net.blocks[i][0].bn1.register_forward_hook(lambda _, __, y, i=i: seen.update({i: y.clone()}))
    images = torch.rand(1, 3, 64, 64)
    net(images)
    for got, expected in zip(encoder(images), seen.values(), strict=False):
        torch.testing.assert_close(got, expected)
    assert len(seen) == 4


def test_keras_parameter_count():
    encoder = Encoder("tf_efficientnet_b4", device="meta")
    assert sum(p.numel() for p in encoder.parameters()) == 17_548_616
    statistics = sum(b.numel() for name, b in encoder.named_buffers() if "running" in name)
    assert statistics == 125_200  # Keras counts these, and 7 values of its input normalisation: 17,673,823


def test_chosen_taps_leave_the_rest_out():
    encoder = Encoder("resnet18", taps=("layer2",))
    assert sum(p.numel() for p in encoder.parameters()) == 683_072
    assert (encoder.channels, encoder.strides) == ((128,), (8,))
    assert Encoder("vgg16", taps=("features.9",), device="meta").channels == (128,)


@pytest.mark.parametrize("in_chans", [1, 3])
def test_pretrained_weights(in_chans, tmp_path):
    net = timm.create_model("resnet18")
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    make = timm.create_model

    def from_file(*arguments, pretrained, **options):
        assert pretrained
        local = {"file": str(tmp_path / "weights.pth")}
        return make(*arguments, pretrained=True, pretrained_cfg_overlay=local, **options)

    with patch("timm.create_model", from_file):
        encoder = Encoder("resnet18", pretrained=True, in_chans=in_chans)
    kernels = net.conv1.weight if in_chans == 3 else net.conv1.weight.sum(1, keepdim=True)
    torch.testing.assert_close(encoder.conv1.weight, kernels)
    assert torch.equal(encoder.layer4[1].conv2.weight, net.layer4[1].conv2.weight)
    assert encoder.mean == (0.485, 0.456, 0.406)


def test_weights_out_of_reach():
    """One sentence names the weights and a solution, whatever the Hub's error is."""

    def offline(*_, **__):
        raise FileNotFoundError("Cannot find the requested files in the local cache.\nPlease check your connection.")

    words = r"^pretrained: cannot get the weights of resnet18\.tv_in1k \(Cannot find .* cache\); pretrained=False"
    with patch("timm.create_model", offline), pytest.raises(OSError, match=words) as error:
        Encoder("resnet18", pretrained=True)
    assert "\n" not in str(error.value)


def test_names_may_carry_the_tag_of_the_weights():
    with patch("timm.create_model", wraps=timm.create_model) as make:
        assert Encoder("resnet18.a2_in1k", device="meta").tag == "a2_in1k"
    assert make.call_args.args == ("resnet18.a2_in1k",)
    with pytest.raises(ValueError, match=r"there are no weights 'resnet18\.ns'; there are: resnet18\.a1_in1k, "):
        Encoder("resnet18.ns")


# Initial weights in the publications: EfficientNetB4 of Keras (plain ImageNet) and torchvision's weights for the
# others. timm's defaults come from later trainings: noisy student, a1_in1k, ra_in1k.
TAGS = {
    "mbdi": {"tf_efficientnet_b4.aa_in1k"},
    "btinet": {"tf_efficientnet_b4.aa_in1k"},
    "csa_moe": {"resnet18.tv_in1k"},
    "csa_moe_vgg16": {"vgg16.tv_in1k"},
    "csa_moe_densenet121": {"densenet121.tv_in1k"},
    "hybrid_vssm": {"resnet18.tv_in1k"},
    "mammo_resnet18": {"resnet18.tv_in1k"},
    "mammo_resnet50": {"resnet50.tv_in1k"},
}


def weights_of(model: nn.Module) -> set[str]:
    encoders = [module for module in model.modules() if isinstance(module, Encoder)]
    return {f"{encoder.name.partition('.')[0]}.{encoder.tag}" for encoder in encoders}


@pytest.mark.parametrize("name", sorted(TAGS))
def test_weights_are_those_of_the_publications(name):
    assert weights_of(create_model(name, device="meta")) == TAGS[name]


@pytest.mark.parametrize("recipe", list_configs())
def test_weights_of_each_recipe(recipe):
    model = load_config(recipe).model
    expected = {"resnet18.tv_in1k"} if recipe == "demo" else TAGS[model.name]
    assert model.options.get("pretrained", False) == (recipe != "demo")
    assert weights_of(create_model(model.name, **model.options | {"pretrained": False}, device="meta")) == expected


@pytest.mark.parametrize("name", list_encoders())
def test_names_without_a_tag_mean_the_same_weights(name):
    encoder = Encoder(name, device="meta")
    assert encoder.tag == ("aa_in1k" if name.startswith("tf_efficientnet") else "tv_in1k")
    assert f"{name}.{encoder.tag}" in timm.list_pretrained(f"{name}.*")


def test_weights_of_the_hybrid_can_be_chosen():
    model = create_model("hybrid_vssm", weights="a1_in1k", device="meta")
    assert weights_of(model) == {"resnet18.a1_in1k"}
    with pytest.raises(ValueError, match=r"encoder: there are no weights 'resnet18\.ns'"):
        create_model("hybrid_vssm", weights="ns", device="meta")


def test_frozen_modules_neither_learn_nor_change():
    encoder = Encoder("resnet18", freeze_until="layer1").train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    features = encoder(torch.rand(2, 3, 64, 64))
    sum(f.square().mean() for f in features).backward()
    frozen = ("conv1", "bn1", "layer1")
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad != name.startswith(frozen), name
        assert (parameter.grad is None) == name.startswith(frozen), name
    for name, value in encoder.state_dict().items():
        if name.endswith("running_mean"):
            assert torch.equal(value, before[name]) == name.startswith(frozen), name
    assert not encoder.layer1[0].bn1.training
    assert encoder.layer2.training


def test_freezing_may_end_inside_a_block():
    encoder = Encoder("tf_efficientnet_b4", freeze_until="blocks.1.1.bn2", device="meta")
    assert sum(p.numel() for p in encoder.parameters() if not p.requires_grad) == 26_056
    assert encoder.blocks[1][1].se.conv_reduce.weight.requires_grad
    assert not encoder.blocks[1][1].conv_dw.weight.requires_grad
    assert not any(m.training for m in encoder.blocks[0].modules())
    assert encoder.eval().train().blocks[1][1].bn3.training


def test_bad_names_and_images():
    with pytest.raises(
        ValueError, match=r"no encoder 'resnet81' \(did you mean 'resnet18'\?\); there are: densenet121"
    ):
        Encoder("resnet81")
    with pytest.raises(ValueError, match="in_chans: expected 1 or 3, got 2"):
        Encoder("resnet18", in_chans=2)
    with pytest.raises(ValueError, match="freeze_until: resnet18 has no module 'layer9'"):
        Encoder("resnet18", freeze_until="layer9", device="meta")
    with pytest.raises(ValueError, match="taps: resnet18 has no 'layer9'; it has: conv1"):
        Encoder("resnet18", taps=("layer9",), device="meta")
    with pytest.raises(ValueError, match="taps: expected None for resnet34, which is not one of densenet121"):
        Encoder("resnet34", taps=("layer1",), device="meta")
    with pytest.raises(ValueError, match="freeze_until: resnet34 has no module 'layer9'; it has: conv1"):
        Encoder("resnet34", freeze_until="layer9", device="meta")
    encoder = Encoder("resnet18", device="meta")
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 3, H, W\) with H and W at least 32"):
        encoder(torch.rand(1, 3, 31, 64))
    with pytest.raises(TypeError, match="images: expected float32"):
        encoder(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_missing_timm_says_what_installs_it():
    with patch.dict(sys.modules, {"timm": None}), pytest.raises(ImportError, match=r'pip install "mtlkit\[models\]"'):
        Encoder("resnet18")


def test_dtype():
    encoder = Encoder("resnet18", dtype=torch.bfloat16)
    assert {p.dtype for p in encoder.parameters()} == {torch.bfloat16}
    assert isinstance(encoder.bn1, nn.BatchNorm2d)
