"""Parts of the baselines compared with libraries or formulas: encoders, attention, connections."""

from unittest.mock import patch

import pytest
import timm
import torch
from torch.nn import functional as F

from mtlkit.models import create_model
from mtlkit.models.baselines import mtl_oca, swin_unet, transunet


@torch.no_grad()
def test_encoder_of_transunet_is_the_hybrid_of_timm():
    model = create_model("transunet", depth=2, image_size=64).eval()
    options = {"class_token": False, "global_pool": "avg", "fc_norm": False}  # no class token
    net = timm.create_model("vit_base_r50_s16_224", img_size=64, depth=2, num_classes=0, **options).eval()
    net.patch_embed.backbone.load_state_dict(model.resnet.state_dict())
    net.patch_embed.proj.load_state_dict(model.proj.state_dict())
    net.blocks.load_state_dict(model.blocks.state_dict())
    net.norm.load_state_dict(model.norm.state_dict())
    net.pos_embed.copy_(model.positions.flatten(2).transpose(1, 2))
    seen, images = [], torch.rand(1, 3, 64, 64)
    model.norm.register_forward_hook(lambda _, __, tokens: seen.append(tokens))
    model(images)
    torch.testing.assert_close(seen[0], net.forward_features(images))


@torch.no_grad()
def test_encoder_of_swin_unet_is_that_of_timm():
    model = create_model("swin_unet", depths=(2, 1, 1, 1)).eval()
    net = timm.create_model("swin_tiny_patch4_window7_224", depths=(2, 1, 1, 1), strict_img_size=False).eval()
    for ours, theirs in ((model.patch_embed, net.patch_embed), (model.layers, net.layers), (model.norm, net.norm)):
        theirs.load_state_dict(ours.state_dict())
    seen, images = [], torch.rand(1, 3, 96, 64)
    model.norm.register_forward_hook(lambda _, __, features: seen.append(features))
    model(images)
    torch.testing.assert_close(seen[0], net.forward_features(images))
    for up, down in zip(model.decoder, model.layers[-2::-1], strict=True):  # starts as a copy, like the official code
        assert all(torch.equal(a, b) for a, b in zip(up.parameters(), down.blocks.parameters(), strict=True))


@pytest.mark.parametrize(("name", "module"), [("swin_unet", swin_unet), ("transunet", transunet)])
def test_pretrained_weights_are_of_all_blocks(name, module):
    """The complete encoder is loaded, then blocks that the network does not have are removed."""
    make = module.make_network

    def without_download(encoder, pretrained, **options):
        assert pretrained
        assert not {"depths", "depth"} & set(options)
        return make(encoder, False, **options)

    with patch.object(module, "make_network", without_download):
        model = create_model(name, pretrained=True, device="meta")
    plain = create_model(name, device="meta")
    assert {key: p.shape for key, p in model.named_parameters()} == {k: p.shape for k, p in plain.named_parameters()}


@torch.no_grad()
def test_object_context_is_the_formula():
    context = mtl_oca.ObjectContext(4).eval()
    x, regions = torch.randn(1, 4, 3, 5), torch.randn(1, 2, 3, 5)
    pixels = [(i, j) for i in range(3) for j in range(5)]
    objects = torch.zeros(4, 2)
    for k in range(2):
        total = sum(regions[0, k, i, j].exp() for i, j in pixels)
        for i, j in pixels:
            objects[:, k] += regions[0, k, i, j].exp() / total * x[0, :, i, j]
    keys, values = (part(objects[None, ..., None])[0, ..., 0] for part in (context.key, context.value))  # (C, K)
    queries, found = context.query(x)[0], torch.zeros(1, 4, 3, 5)
    for i, j in pixels:
        scores = torch.stack([queries[:, i, j] @ keys[:, k] / 4**0.5 for k in range(2)]).exp()
        found[0, :, i, j] = sum(scores[k] / scores.sum() * values[:, k] for k in range(2))
    expected = context.join(torch.cat([x, context.rise(found)], 1))
    torch.testing.assert_close(context(x, regions), expected)


@torch.no_grad()
def test_classifier_of_mtl_oca_looks_where_the_first_mask_is():
    model = create_model("mtl_oca", encoder="resnet18", decoder_dims=(8, 8, 4, 4)).eval()
    torch.nn.init.zeros_(model.first_mask.weight)
    model.first_mask.bias.copy_(torch.tensor([0.0, 30.0]))  # a lesion everywhere: both halves equal the mean
    images = torch.rand(1, 3, 64, 64)
    mean = model.encoder(images)[-1].mean((2, 3))
    torch.testing.assert_close(model(images).cls_logits, model.cls_head(torch.cat([mean, mean], 1)))


@torch.no_grad()
def test_mtan_attends_as_published():
    """a_s = mask([u_s; refined a_(s-1)]) p_s, with the shared ResNet's u and p, for either task."""
    model = create_model("mtan", encoder="resnet18").eval()
    net, images, seen = model.resnet, torch.rand(1, 3, 64, 64), []
    model.cls_head.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    model(images)
    x, below = net.maxpool(net.act1(net.bn1(net.conv1(images)))), None
    for i, stage in enumerate((net.layer1, net.layer2, net.layer3, net.layer4)):
        u = stage[:-1](x)
        x = stage[-1](u)
        mask = model.attention[f"classification_{i + 1}"](u if below is None else torch.cat([u, below], 1))
        a = mask * x
        if i < 3:
            below = model.refine[i](a)
            below = F.max_pool2d(below, 2) if i == 0 else below
    torch.testing.assert_close(seen[0], a)
    assert x.shape == (1, 512, 8, 8)  # dilated: 1/8 of the image


@torch.no_grad()
def test_mtanet_refines_what_is_not_yet_sure():
    """Where the previous mask is certain of a lesion, a level adds only its norm's constant."""
    model = create_model("mtanet", encoder="pvt_v2_b0", dim=4).eval()
    level = model.levels[0]
    below, skip = torch.rand(1, 256, 2, 2), torch.rand(1, 160, 4, 4)
    sure = torch.full((1, 1, 8, 8), 100.0)
    torch.testing.assert_close(level(below, skip, sure)[1], torch.full((1, 1, 4, 4), 100.0))
    x, mask = level(below, skip, torch.zeros(1, 1, 8, 8))
    torch.testing.assert_close(mask, level.head(x / 2))
