"""VMamba: parameter names of the originals, checkpoints of older versions, initial values, image sizes."""

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
    "out_norm.weight",
    "out_norm.bias",
    "out_proj.weight",
]
BOTH = ("weight", "bias")


def second_names(depths: tuple[int, ...]) -> set[str]:
    names = {f"patch_embed.{k}.{kind}" for k in (0, 2, 5, 7) for kind in BOTH}
    names |= {f"classifier.{part}.{kind}" for part in ("norm", "head") for kind in BOTH}
    for i, depth in enumerate(depths):
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            names |= {f"{block}.op.{name}" for name in SS2D}
            names |= {f"{block}.{part}.{kind}" for part in ("norm", "norm2", "mlp.fc1", "mlp.fc2") for kind in BOTH}
        if i < len(depths) - 1:
            names |= {f"layers.{i}.downsample.{k}.{kind}" for k in (1, 3) for kind in BOTH}
    return names


def first_names(depths: tuple[int, ...]) -> set[str]:
    names = {f"patch_embed.{k}.{kind}" for k in (0, 2) for kind in BOTH}
    names |= {f"classifier.{part}.{kind}" for part in ("norm", "head") for kind in BOTH}
    for i, depth in enumerate(depths):
        for j in range(depth):
            block = f"layers.{i}.blocks.{j}"
            names |= {f"{block}.op.{name}" for name in [*SS2D, "conv2d.bias"]}
            names |= {f"{block}.norm.{kind}" for kind in BOTH}
        if i < len(depths) - 1:
            names |= {f"layers.{i}.downsample.{name}" for name in ("reduction.weight", "norm.weight", "norm.bias")}
    return names


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("vmamba_t_s1l8", (2, 2, 8, 2)),
        ("vmamba_t_s2l5", (2, 2, 5, 2)),
        ("vmamba_s_s2l15", (2, 2, 15, 2)),
        ("vmamba_s_s1l20", (2, 2, 20, 2)),
        ("vmamba_b_s2l15", (2, 2, 15, 2)),
    ],
)
def test_names_are_the_originals(name, depths):
    assert set(create_model(name, device="meta").state_dict()) == second_names(depths)


def test_names_of_the_first_version():
    assert set(create_model("vmamba_t_v0", device="meta").state_dict()) == first_names((2, 2, 9, 2))


def test_checkpoints_of_the_first_version_load(small):
    model, other = (create_model("vmamba_t_v0", **small).eval() for _ in range(2))

    def first_name(name: str) -> str:
        for new, old in (
            ("patch_embed.0.", "patch_embed.proj."),
            ("patch_embed.2.", "patch_embed.norm."),
            ("classifier.", ""),
        ):
            if name.startswith(new):
                return old + name[len(new) :]
        parts = name.split(".")
        if "blocks" in parts:
            parts[4] = {"norm": "ln_1", "op": "self_attention"}[parts[4]]
        return ".".join(parts)

    checkpoint = {first_name(name): value for name, value in model.state_dict().items()}
    assert "layers.0.blocks.0.ln_1.weight" in checkpoint
    assert "norm.weight" in checkpoint
    names = list(checkpoint)
    other.load_state_dict(checkpoint)
    assert list(checkpoint) == names
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(images), other(images))


def test_checkpoints_with_1x1_convolutions_load(small):
    model, other = (create_model("vmamba_t_s1l8", **small).eval() for _ in range(2))
    linear = (".in_proj.weight", ".out_proj.weight", ".fc1.weight", ".fc2.weight")
    checkpoint = {
        name: value[:, :, None, None] if name.endswith(linear) else value for name, value in model.state_dict().items()
    }
    torch.nn.Sequential(other).load_state_dict({f"0.{name}": value for name, value in checkpoint.items()})
    images = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(images), other(images))


def test_foreign_checkpoints_are_refused(small):
    model = create_model("vmamba_t_s1l8", **small)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*fc3"):
        model.load_state_dict(model.state_dict() | {"layers.0.fc3.weight": torch.zeros(1)})


def test_init(small):
    model = create_model("vmamba_t_s1l8", **small)
    assert model.layers[3].blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.layers[0].blocks[0].op.A_logs.any()
    assert not model.classifier["head"].bias.any()


@pytest.mark.parametrize(("height", "width", "size"), [(1, 5, (1, 1)), (33, 64, (2, 2)), (250, 97, (8, 4))])
def test_sizes_are_rounded_up(small, height, width, size):
    model = create_model("vmamba_t_s1l8", **small).eval()
    assert model.forward_features(torch.rand(1, 3, height, width)).shape == (1, *size, 128)


def test_first_version_crops_patches_and_pads_stages(small):
    model = create_model("vmamba_t_v0", **small).eval()
    assert model.forward_features(torch.rand(1, 3, 39, 70)).shape == (1, 2, 3, 128)
    with pytest.raises(ValueError, match=r"with H and W at least 4, got \(1, 3, 3, 9\)"):
        model(torch.rand(1, 3, 3, 9))
