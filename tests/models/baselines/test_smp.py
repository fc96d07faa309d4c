"""Networks of segmentation-models-pytorch: agreement with the library, additive gate, freezing, missing packages."""

import sys
from unittest.mock import patch

import pytest
import segmentation_models_pytorch as smp
import torch

from mtlkit.models import create_model


def test_same_as_the_library():
    model = create_model("unet", encoder="resnet18", dim=2).eval()
    net = smp.Unet("tu-resnet18", encoder_weights=None, decoder_channels=(32, 16, 8, 4, 2), aux_params={"classes": 3})
    net.load_state_dict(model.net.state_dict(), strict=False)  # with dropout, the linear layer has another index
    net.classification_head[3].load_state_dict(model.last_layer.state_dict())
    images = torch.rand(2, 3, 64, 96)
    mask, labels = net.eval()(images)
    out = model(images)
    torch.testing.assert_close(out.seg_logits, mask)
    torch.testing.assert_close(out.cls_logits, labels)


def test_attention_unet_gates_its_skip_connections():
    """skip sigmoid(w ReLU(W_x skip + W_g g)) at each skip connection; otherwise equal to U-Net."""
    gated = create_model("attention_unet", encoder="resnet18", dim=2).eval()
    seen = []
    for block in gated.net.decoder.blocks[:-1]:
        block.attention1.register_forward_hook(lambda gate, given, out: seen.append((gate, *given, out)))
    with torch.no_grad():
        gated(torch.rand(1, 3, 64, 64))
        assert [gate.dim for gate, _, _ in seen] == [512, 32, 16, 8]
        for gate, joined, out in seen:
            g, skip = joined.split([gate.dim, joined.shape[1] - gate.dim], 1)
            weight = torch.sigmoid(gate.psi(torch.relu(gate.x_proj(skip) + gate.g_proj(g))))
            torch.testing.assert_close(out, torch.cat([g, skip * weight], 1))
    plain = create_model("unet", encoder="resnet18", dim=2)
    keys = set(gated.state_dict()) - set(plain.state_dict())
    assert all(".attention1." in key for key in keys)
    assert set(plain.state_dict()) <= set(gated.state_dict())


def test_frozen_modules_neither_learn_nor_change():
    model = create_model("unet", encoder="resnet18.tv_in1k", dim=2, freeze_until="layer1").train()
    assert model.tag == "tv_in1k"
    for name, parameter in model.net.encoder.model.named_parameters():
        assert parameter.requires_grad != name.startswith(("conv1", "bn1", "layer1")), name
    assert not model.net.encoder.model.bn1.training
    assert model.net.encoder.model.layer2.training
    assert all(parameter.requires_grad for parameter in model.net.decoder.parameters())
    with pytest.raises(ValueError, match="freeze_until: resnet18 has no module 'layer9'; it has: conv1"):
        create_model("unet", encoder="resnet18", dim=2, freeze_until="layer9")


def test_weights_out_of_reach():
    with (
        patch("timm.create_model", side_effect=FileNotFoundError("Cannot find the requested files.")),
        patch("segmentation_models_pytorch.Unet", side_effect=OSError("Cannot find the requested files.")),
        pytest.raises(OSError, match=r"^pretrained: cannot get the weights of resnet18 \(Cannot find"),
    ):
        create_model("unet", encoder="resnet18", pretrained=True)


def test_without_the_library():
    blocked = {name: None for name in sys.modules if name.split(".")[0] == "segmentation_models_pytorch"}
    blocked["segmentation_models_pytorch"] = None
    with (
        patch.dict(sys.modules, blocked),
        pytest.raises(ImportError, match=r'segmentation_models_pytorch is not .* pip install "mtlkit\[baselines\]"'),
    ):
        create_model("unet")
