"""Networks of MONAI with a classifier: agreement with MONAI, connections, padding, options, errors."""

import sys
from unittest.mock import patch

import pytest
import torch
from monai.networks import nets
from torch import nn

from mtlkit.models import MonaiBaseline, MonaiBaselineOptions, create_model

SMALL = {
    "swin_unetr": {"dim": 12},
    "unetr": {"dim": 1, "image_size": 64},
    "segresnet": {"dim": 8},
}
MONAI = {
    "swin_unetr": lambda: nets.SwinUNETR(in_channels=3, out_channels=1, feature_size=12, spatial_dims=2),
    "unetr": lambda: nets.UNETR(3, 1, img_size=64, feature_size=1, hidden_size=48, mlp_dim=192, spatial_dims=2),
    "segresnet": lambda: nets.SegResNet(2, 8, 3, 1),
}
COARSEST = {
    "swin_unetr": lambda net: net.encoder10,
    "unetr": lambda net: net.vit.norm,
    "segresnet": lambda net: net.down_layers[-1],
}


def network(name: str, **options) -> MonaiBaseline:
    return create_model(name, **SMALL[name], **options).eval()


@pytest.mark.parametrize("name", SMALL)
def test_same_as_monai(name):
    model, theirs = network(name), MONAI[name]().eval()
    nn.init.normal_(model.cls_head[3].bias)
    for parameter in model.parameters():  # positions, biases and norms that start at 0 or 1 must matter, too
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    theirs.load_state_dict(model.net.state_dict())
    images, seen = torch.rand(2, 3, 64, 64), []
    COARSEST[name](theirs).register_forward_hook(lambda _, __, y: seen.append(y))
    with torch.no_grad():
        mask, out = theirs(images), model(images)
    torch.testing.assert_close(out.seg_logits, mask)
    (features,) = seen
    features = features.mean(1) if features.dim() == 3 else features.mean((2, 3))  # UNETR returns tokens
    torch.testing.assert_close(out.cls_logits, model.cls_head[3](features))


@pytest.mark.parametrize(("name", "stride"), [("swin_unetr", 32), ("segresnet", 8)])
def test_sizes_are_padded_and_cropped_back(name, stride):
    model = network(name)
    images, padded = torch.rand(1, 3, 65, 66), torch.zeros(1, 3, 64 + stride, 64 + stride)
    padded[:, :, :65, :66] = images
    with torch.no_grad():
        out, whole = model(images), model(padded)
    assert torch.equal(out.seg_logits, whole.seg_logits[:, :, :65, :66])
    assert torch.equal(out.cls_logits, whole.cls_logits)


@pytest.mark.parametrize(("name", "smallest"), [("swin_unetr", 64), ("unetr", 32), ("segresnet", 16)])
def test_the_smallest_images(name, smallest):
    options = {"dim": SMALL[name]["dim"], "image_size": 32} if name == "unetr" else SMALL[name]
    model = create_model(name, **options)
    images = torch.rand(1, 3, smallest, smallest)
    for mode in (True, False):
        assert model.train(mode)(images).seg_logits.isfinite().all()
    with pytest.raises(ValueError, match=rf"images: expected shape \(B, 3, H, W\) with H and W at least {smallest}"):
        model(images[..., 1:])


def test_unetr_has_one_size():
    model = network("unetr")
    assert model(torch.rand(1, 3, 64, 50)).seg_logits.shape == (1, 1, 64, 50)
    with pytest.raises(ValueError, match=r"images: expected H and W of 64, the image_size of .* \(1, 3, 64, 80\)"):
        model(torch.rand(1, 3, 64, 80))


@pytest.mark.parametrize("name", SMALL)
def test_device_and_dtype(name):
    with torch.device("meta"):
        assert all(p.is_meta for p in network(name).parameters())
    model = network(name, dtype=torch.float64)
    assert model(torch.rand(1, 3, 64, 64, dtype=torch.float64)).cls_logits.dtype == torch.float64


@pytest.mark.parametrize("name", ["swin_unetr", "unetr"])
def test_the_classifier_stands_on_the_encoder(name):
    model = network(name)
    model(torch.rand(1, 3, 64, 64)).cls_logits.sum().backward()
    reached = {key.split(".")[1] for key, p in model.net.named_parameters(prefix="net") if p.grad is not None}
    assert reached == ({"swinViT", "encoder10"} if name == "swin_unetr" else {"vit"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"net": "vnet"}, "net: expected one of 'swin_unetr', 'unetr', 'segresnet', got 'vnet'"),
        ({"net": "swin_unetr", "dim": 16}, "dim: expected a multiple of 12 for swin_unetr, got 16"),
        ({"net": "unetr", "dim": 0}, "dim: expected a multiple of 1 for unetr, got 0"),
        ({"net": "unetr", "image_size": 100}, "image_size: expected a multiple of 16 of at least 32, got 100"),
        ({"num_classes": 0}, "num_classes: expected at least 1"),
        ({"in_chans": 0}, "in_chans: expected at least 1"),
        ({"dropout": 1.5}, "dropout"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        MonaiBaselineOptions(**options)


@pytest.mark.parametrize("missing", ["monai", "einops"])
def test_without_monai(missing):
    blocked = {name: None for name in sys.modules if name.split(".")[0] == missing} | {missing: None}
    with patch.dict(sys.modules, blocked), pytest.raises(ImportError, match=r'pip install "mtlkit\[baselines\]"') as e:
        create_model("unetr")
    assert missing in str(e.value)
