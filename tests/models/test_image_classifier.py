"""timm networks as classifiers: the same outputs, ignored masks, and invalid options."""

import pytest
import timm
import torch

from mtlkit.models import create_model


def test_answers_are_those_of_timm():
    model = create_model("image_classifier", encoder="resnet10t", num_classes=3).eval()
    twin = timm.create_model("resnet10t", num_classes=3).eval()
    twin.load_state_dict(model.net.state_dict())
    images = torch.rand(2, 3, 64, 70)
    assert torch.equal(model(images).cls_logits, twin(images))
    assert torch.equal(model(images, torch.ones(2, 1, 64, 70)).cls_logits, twin(images))
    assert model.last_layer is model.net.get_classifier()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "resnet19"}, "encoder: there is no encoder 'resnet19'"),
        ({"num_classes": 0}, "num_classes: expected at least 1, got 0"),
        ({"in_chans": 2}, "in_chans: expected one of 1, 3, got 2"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        create_model("image_classifier", **options)
