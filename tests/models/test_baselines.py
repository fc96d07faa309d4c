"""Common behaviour of the baselines: padding, an optional classifier, weights, devices, errors."""

import pytest
import timm
import torch

from mtlkit.models import create_model, from_pretrained
from mtlkit.models.baselines import BaselineOptions, MTINetOptions, SwinUNetOptions
from mtlkit.models.registry import default_options

SMALL = {
    "unet": {"encoder": "resnet18", "dim": 2},
    "missformer": {"dim": 4, "bridge_depth": 1},
    "mtan": {"encoder": "resnet18"},
    "mtanet": {"encoder": "pvt_v2_b0", "dim": 8},
    "mtl_oca": {"encoder": "resnet18", "decoder_dims": (16, 16, 8, 8)},
}


@pytest.mark.parametrize("name", SMALL)
def test_sizes_are_padded_and_cropped_back(name):
    model = create_model(name, **SMALL[name]).eval()
    images, padded = torch.rand(1, 3, 40, 65), torch.zeros(1, 3, 64, 96)
    padded[:, :, :40, :65] = images
    with torch.no_grad():
        out, whole = model(images), model(padded)
    assert torch.equal(out.seg_logits, whole.seg_logits[:, :, :40, :65])
    assert torch.equal(out.cls_logits, whole.cls_logits)
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 3, H, W\) with H and W at least 32"):
        model(images[..., :31])


@pytest.mark.parametrize("name", SMALL)
def test_the_classifier_may_be_left_out(name):
    model = create_model(name, **SMALL[name], classifier=False).eval()
    out = model(torch.rand(1, 3, 32, 32))
    assert out.cls_logits is None
    assert model.returns == ("seg_logits",)
    assert model.last_layer is None
    whole = create_model(name, **SMALL[name], num_classes=5)
    assert whole.returns == ("seg_logits", "cls_logits")
    assert whole.last_layer.out_features == 5


def test_other_classes_make_a_new_head(tmp_path):
    model = create_model("unet", **SMALL["unet"])
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"classification_head"):
        other = from_pretrained(tmp_path, num_classes=2)
    assert other.last_layer.out_features == 2
    theirs = other.state_dict()
    kept = [key for key in model.state_dict() if "classification_head" not in key]
    assert all(torch.equal(model.state_dict()[key], theirs[key]) for key in kept)


def test_device_and_dtype():
    with torch.device("meta"):
        assert all(p.is_meta for p in create_model("missformer", **SMALL["missformer"]).parameters())
    model = create_model("missformer", **SMALL["missformer"], dtype=torch.float64)
    assert model(torch.rand(1, 3, 32, 32, dtype=torch.float64)).cls_logits.dtype == torch.float64


# The weights with which each network's official code starts, by timm's name.
TAGS = {
    "unet": "aa_in1k",
    "attention_unet": "aa_in1k",
    "unet_plus_plus": "aa_in1k",
    "manet": "aa_in1k",
    "deeplabv3_plus": "aa_in1k",
    "fpn": "aa_in1k",
    "upernet": "aa_in1k",
    "transunet": "orig_in21k",
    "swin_unet": "ms_in1k",
    "mtan": "tv_in1k",
    "mtanet": "in1k",
    "mtl_oca": "tv_in1k",
    "mti_net": "ms_in1k",
    "densemtl": "tv_in1k",
}


@pytest.mark.parametrize("name", sorted(TAGS))
def test_weights_are_named(name):
    encoder = default_options(name).encoder
    assert timm.get_pretrained_cfg(encoder).tag == TAGS[name]
    assert encoder.endswith(f".{TAGS[name]}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BaselineOptions(num_classes=0), "num_classes: expected at least 1"),
        (lambda: BaselineOptions(dropout=1.5), "dropout"),
        (lambda: MTINetOptions(classifier=False), "classifier: expected True for mti_net"),
        (lambda: SwinUNetOptions(depths=(2, 2)), r"depths: expected 4 numbers of blocks, got \(2, 2\)"),
        (lambda: create_model("mtan", encoder="vgg11"), "encoder: expected a ResNet of timm, got 'vgg11'"),
        (lambda: create_model("mti_net", encoder="resnet18"), "encoder: expected an HRNet of timm, got 'resnet18'"),
        (lambda: create_model("mtanet", encoder="vit_tiny_patch16_224"), "encoder: expected strides of 4, 8, 16, 32"),
        (lambda: create_model("densemtl", decoder_dims=(8, 8)), "decoder_dims: expected 5 numbers"),
        (lambda: create_model("missformer", dim=3), "dim: expected an even number of at least 2, got 3"),
        (lambda: create_model("transunet", image_size=100), "image_size: expected a multiple of 16"),
        (lambda: create_model("fpn", dim=32), "dim: expected a multiple of 128 for fpn, got 32"),
        (lambda: create_model("unet", encoder="unet"), "encoder: there is no encoder 'unet'"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()
