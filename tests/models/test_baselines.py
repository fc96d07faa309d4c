"""U-Net and Attention U-Net: counts, wiring, padding, errors."""

import pytest
import torch

from mtlkit.models import create_model

SMALL = {"encoder": "resnet18", "decoder_dims": (32, 24, 16, 8)}


@pytest.mark.parametrize(("name", "gates"), [("unet", False), ("attention_unet", True)])
def test_decoder_counts(name, gates):
    model = create_model(name, device="meta")
    below, expected = 1792, 0
    for dim, skip in zip((384, 192, 96, 48), (960, 336, 192, 144), strict=True):
        expected += 4 * below * dim + dim  # upsampling, 2 x 2
        expected += 9 * (dim + skip) * dim + 9 * dim * dim + 2 * 2 * dim  # two convolutions with BatchNorm
        expected += gates * (skip * dim // 2 + dim * dim // 2 + dim // 2 + dim // 2 + 1)
        below = dim
    expected += 4 * below * below + below + below + 1
    parts = (model.decoder, model.seg_head)
    assert sum(p.numel() for part in parts for p in part.parameters()) == expected == 10_804_081 + gates * 327_892


@pytest.mark.parametrize("attention", [False, True])
def test_wiring(attention):
    model = create_model("unet", **SMALL, attention=attention).eval()
    images = torch.rand(2, 3, 64, 64)
    out = model(images)
    *skips, x = model.encoder(images)
    torch.testing.assert_close(out.cls_logits, model.cls_head[1](x.mean((2, 3))))
    for level, skip in zip(model.decoder, reversed(skips), strict=True):
        x = level.up(x)
        if attention:
            gate = level.gate
            skip = skip * torch.sigmoid(gate.psi(torch.relu(gate.x_proj(skip) + gate.g_proj(x))))
        x = level.convs(torch.cat([x, skip], 1))
    torch.testing.assert_close(out.seg_logits, model.seg_head(x))


def test_sizes_are_padded_and_cropped_back():
    model = create_model("unet", **SMALL).eval()
    images = torch.rand(1, 3, 40, 65)
    padded = torch.zeros(1, 3, 64, 96)
    padded[:, :, :40, :65] = images
    out, whole = model(images), model(padded)
    assert torch.equal(out.seg_logits, whole.seg_logits[:, :, :40, :65])
    assert torch.equal(out.cls_logits, whole.cls_logits)
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 3, H, W\) with H and W at least 32"):
        model(images[..., :31])


def test_bad_options():
    with pytest.raises(ValueError, match=r"decoder_dims: expected 4 numbers of at least 2, got \(8, 8\)"):
        create_model("unet", decoder_dims=(8, 8), device="meta")
    with pytest.raises(ValueError, match="encoder: there is no encoder 'unet'"):
        create_model("unet", encoder="unet", device="meta")
    with pytest.raises(ValueError, match="num_classes: expected at least 1"):
        create_model("unet", num_classes=0, device="meta")
    with pytest.raises(ValueError, match="dropout"):
        create_model("unet", dropout=1.0, device="meta")
