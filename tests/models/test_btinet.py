"""BTI-Net: its differences from MBDI, its gates' signals and its second stage; test_mbdi.py tests the rest."""

import pytest
import torch

from mtlkit.models import create_model

SMALL = {"encoder": "resnet18", "decoder_dims": (16, 12, 8, 8), "clf_dim": 16, "hmsf": False}


def test_second_stage_trains_the_gates_alone():
    model = create_model("btinet", **SMALL, levels=(1, 3))
    chosen = {id(parameter) for parameter in model.stage2_parameters()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
    assert names == {name for name, _ in model.named_parameters() if ".interaction.upa." in name}
    assert {name.split(".")[1] for name in names} == {"0", "2"}


@pytest.mark.parametrize("options", [{"upa": False}, {"levels": ()}])
def test_there_is_no_second_stage_without_gates(options):
    with pytest.raises(ValueError, match="stage2_parameters: the network has no gates"):
        create_model("btinet", **SMALL, **options).stage2_parameters()


def test_an_image_does_not_depend_on_its_batch():
    model = create_model("btinet", **SMALL).eval()
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        together, alone = model(images), model(images[:1])
    for name in ("seg_logits", "cls_logits", "gates"):
        torch.testing.assert_close(getattr(together, name)[:1], getattr(alone, name), rtol=1e-4, atol=1e-4)
