"""VM-UNet: parameter names of the original, image sizes, stochastic depth, options."""

import pytest
import torch

from harness.published_networks import VMUNet
from mtlkit.models import create_model

SMALL = {"depths": (1, 2), "decoder_depths": (2, 1), "dims": (16, 32), "num_classes": 2}


def test_names_are_the_originals():
    model = create_model("vm_unet", **SMALL | {"depths": (1, 1), "decoder_depths": (1, 1), "num_classes": 1})
    published = VMUNet().state_dict()
    assert all(name.startswith("vmunet.") for name in published)
    assert model.from_published(published).keys() == model.state_dict().keys()
    assert len(create_model("vm_unet", device="meta").state_dict()) == 222


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 19), (33, 40)])
def test_maps_have_the_size_of_the_images(height, width):
    model = create_model("vm_unet", **SMALL).eval()
    images = torch.rand(2, 3, height, width)
    maps = model(images).seg_logits
    assert maps.shape == (2, 2, height, width)
    padded = torch.nn.functional.pad(images, (0, -width % 8, 0, -height % 8))
    assert torch.equal(maps, model(padded).seg_logits[:, :, :height, :width])


def test_every_stage_reaches_the_map():
    model = create_model("vm_unet", **SMALL).eval()
    images = torch.rand(1, 3, 16, 16)
    maps = model(images).seg_logits
    for stage in (*model.layers, *model.layers_up):
        bias = stage.blocks[0].op.out_norm.bias
        with torch.no_grad():
            bias.add_(1)
            assert not torch.equal(model(images).seg_logits, maps)
            bias.sub_(1)


def test_stochastic_depth_is_greatest_at_the_bottom():
    model = create_model("vm_unet", **SMALL, drop_path_rate=0.2)
    down, up = ([b.drop_path.p for stage in half for b in stage.blocks] for half in (model.layers, model.layers_up))
    assert down == pytest.approx([0, 0.1, 0.2])
    assert up == pytest.approx([0.2, 0.1, 0])


def test_bad_options_and_images():
    with pytest.raises(
        ValueError, match=r"decoder_depths: expected 2 numbers of blocks, one for each of dims, got \(1,\)"
    ):
        create_model("vm_unet", **SMALL | {"decoder_depths": (1,)})
    with pytest.raises(ValueError, match=r"dims: expected multiples of 4, got \(6, 12\)"):
        create_model("vm_unet", **SMALL | {"dims": (6, 12)})
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 3, H, W\) with H and W at least 8, got"):
        create_model("vm_unet", **SMALL)(torch.rand(1, 3, 7, 16))
