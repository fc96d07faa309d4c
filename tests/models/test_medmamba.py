"""MedMamba: parameter names of the original, initial values, image sizes."""

import pytest
import torch

from mtlkit.models import create_model

SS2D = [
    "x_proj_weight",
    "dt_projs_weight",
    "dt_projs_bias",
    "A_logs",
    "Ds",
    "in_proj.weight",
    "conv2d.weight",
    "conv2d.bias",
    "out_norm.weight",
    "out_norm.bias",
    "out_proj.weight",
]
NORMS, CONVS = (0, 2, 5), (1, 4, 7)


def original_names(depths: tuple[int, ...]) -> set[str]:
    names = {f"patch_embed.{part}.{kind}" for part in ("proj", "norm") for kind in ("weight", "bias")}
    names |= {"head.weight", "head.bias"}
    for i, depth in enumerate(depths):
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            names |= {f"{block}.self_attention.{name}" for name in SS2D}
            names |= {f"{block}.ln_1.{kind}" for kind in ("weight", "bias")}
            convs = f"{block}.conv33conv33conv11"
            names |= {f"{convs}.{k}.{kind}" for k in NORMS + CONVS for kind in ("weight", "bias")}
            names |= {f"{convs}.{k}.{kind}" for k in NORMS for kind in ("running_mean", "running_var")}
            names |= {f"{convs}.{k}.num_batches_tracked" for k in NORMS}
        if i < len(depths) - 1:
            names |= {f"layers.{i}.downsample.{name}" for name in ("reduction.weight", "norm.weight", "norm.bias")}
    return names


@pytest.mark.parametrize(
    ("name", "depths"), [("medmamba_t", (2, 2, 4, 2)), ("medmamba_s", (2, 2, 8, 2)), ("medmamba_b", (2, 2, 12, 2))]
)
def test_names_are_the_originals(name, depths):
    assert set(create_model(name, device="meta").state_dict()) == original_names(depths)


def test_init(small):
    model = create_model("medmamba_t", **small)
    assert model.layers[3].blocks[0].self_attention.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.head.bias.any()
    conv = model.layers[3].blocks[0].conv33conv33conv11[1]  # 64 channels
    assert conv.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)
    assert torch.equal(model.layers[0].blocks[0].self_attention.Ds, torch.ones(4 * 16))


@pytest.mark.parametrize(
    ("height", "width", "size"), [(32, 32, (1, 1)), (63, 70, (1, 2)), (255, 230, (7, 7)), (96, 64, (3, 2))]
)
def test_sizes_are_cropped(small, height, width, size):
    model = create_model("medmamba_t", **small).eval()
    images = torch.rand(1, 3, height, width)
    assert model.forward_features(images).shape == (1, *size, 128)
    fours = images[:, :, : height // 4 * 4, : width // 4 * 4]
    assert torch.equal(model(images), model(fours))


def test_tiny_images_are_refused(small):
    with pytest.raises(ValueError, match=r"images: expected shape \(B, 3, H, W\) with H and W at least 32, got"):
        create_model("medmamba_t", **small)(torch.rand(1, 3, 64, 31))


def test_logits_are_the_head_of_the_mean(small):
    model = create_model("medmamba_t", **small).eval()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model(images), model.head(model.forward_features(images).flatten(1, 2).mean(1)))
