"""The attributes of networks match their behaviour: outputs, gates, inputs, the last layer."""

import pytest
import torch
from torch import nn

from mtlkit.models import create_model
from mtlkit.models.network import Network, takes

SMALL = {"encoder": "resnet18", "decoder_dims": (16, 16, 12, 8)}
UNET = {"encoder": "resnet18", "dim": 4}
INTERACTING = SMALL | {"clf_dim": 16, "hmsf": False}
FOUR_VIEWS = {"backbone": "vssm", "depths": (1,), "dims": (16,), "d_state": 1}


@pytest.mark.parametrize(
    ("name", "options", "gates"),
    [
        ("mbdi", INTERACTING, [f"{branch}_level{i}" for i in (1, 2, 3, 4) for branch in ("seg", "clf")]),
        ("btinet", INTERACTING | {"levels": (2,)}, ["seg_level2", "clf_level2"]),
        ("btinet", INTERACTING | {"upa": False}, []),
        ("mbdi", INTERACTING | {"levels": ()}, []),
        ("unet", UNET, []),
        ("csa_moe", {"experts": ("image", "boundary")}, ["image", "boundary"]),
        ("csa_moe", {"experts": ("image",), "csa": False}, ["image"]),
        ("hybrid_vssm", FOUR_VIEWS, ["l_cc", "l_mlo", "r_cc", "r_mlo"]),
        ("hybrid_vssm", FOUR_VIEWS | {"tasks": ("label",)}, ["l_cc", "l_mlo", "r_cc", "r_mlo"]),
    ],
)
def test_outputs_are_what_the_network_says(name, options, gates):
    network = create_model(name, **options).eval()
    given = {
        "images": torch.rand(2, 3, 32, 32),
        "masks": torch.ones(2, 1, 32, 32),
        "views": torch.rand(2, 4, 3, 32, 32),
        "present": torch.ones(2, 4, dtype=torch.bool),
    }
    with torch.no_grad():
        output = network(**{argument: given[argument] for argument in takes(network)})
    known = ("seg_logits", "cls_logits", "label_logits", "birads_logits", "gates", "stages")
    assert [field for field in known if getattr(output, field, None) is not None] == [
        field for field in known if field in network.returns
    ]
    assert list(network.gate_names) == gates
    if gates:
        assert output.gates[0].numel() == len(gates)
    if network.stage_names:
        assert output.stages[0].numel() == len(network.stage_names)
    assert network.inspect(*(given[argument] for argument in takes(network)))[0].shape == output[0].shape
    seen = []
    network.last_layer.register_forward_hook(lambda module, inputs, found: seen.append(found))
    with torch.no_grad():
        network(**{argument: given[argument] for argument in takes(network)})
    logits = [value for field, value in output._asdict().items() if field.endswith("logits") and value is not None]
    assert any(torch.equal(seen[-1], value if value.dim() == 2 else value[:, 1]) for value in logits if value.dim() < 4)


def test_masks_are_needed_where_an_expert_looks_at_the_lesion():
    assert create_model("csa_moe").needs_masks
    assert not create_model("csa_moe", experts=("image",)).needs_masks
    assert not create_model("unet", **UNET).needs_masks


def test_batches_matter_to_mbdi_as_published_alone():
    assert create_model("mbdi", **INTERACTING).depends_on_batch
    assert not create_model("mbdi", **INTERACTING, normaliser="running").depends_on_batch
    assert not create_model("btinet", **INTERACTING).depends_on_batch


def test_a_network_that_says_nothing_has_nothing():
    class Plain(Network):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images

    plain = Plain()
    assert plain.returns == plain.gate_names == plain.interaction_levels == ()
    assert plain.last_layer is None
    assert takes(plain) == ("images",)
    assert takes(nn.Identity()) == ("input",)
    with pytest.raises(ValueError, match="stage2_parameters: Plain has no gates to train in a second stage"):
        plain.stage2_parameters()
