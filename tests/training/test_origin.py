"""The origin of a run's network."""

import math
from pathlib import Path

import pytest

from mtlkit.data import Split
from mtlkit.models import create_model
from mtlkit.training import load_config
from mtlkit.training.calibration import Calibration
from mtlkit.training.origin import is_phantoms, origin_of

CLASSES = {"class": ("benign", "malignant")}
SPLIT = Split(train=("a", "b"), val=("c",), test=("d", "e"))
FIGURES = {"val/iou": 0.4, "val/accuracy": 0.6, "test/accuracy": 0.8, "test/auc": math.nan, "test/loss": 1.0}


@pytest.fixture(scope="module")
def model():
    return create_model("medmamba_t", depths=(1, 1), dims=(16, 32), num_classes=2)


def test_all_of_it(model, tmp_path):
    config = load_config("csa_moe")
    calibration = {"class": Calibration(2.0, 10, {"youden": 0.5})}
    (tmp_path / "BUSI").mkdir()
    origin = origin_of(model, config, tmp_path / "BUSI", "busi", CLASSES, SPLIT, FIGURES, calibration)
    (result,) = origin.results
    assert (result.data, result.part, result.images) == ("BUSI", "test", 2)
    assert result.figures == {"accuracy": (0.8, None, None)}
    assert result.remarks == ("There are only 2 images in the test part.",)
    assert origin.parts == {"train": 2, "val": 1, "test": 2}
    assert origin.calibration["class"]["temperature"] == 2.0
    assert origin.recipe == config.to_dict()
    assert f"{config.data.size} x {config.data.size} pixels" in origin.images
    assert not origin.phantoms
    assert str(tmp_path) not in str(origin)


def test_without_a_test_part(model):
    figures = {name: value for name, value in FIGURES.items() if name.startswith("val/")}
    origin = origin_of(
        model, load_config("csa_moe"), Path("BUSI"), "", CLASSES, None, figures, {"class": Calibration()}
    )
    assert [result.part for result in origin.results] == ["val"]
    assert origin.parts == {}
    assert origin.calibration == {}


def test_phantoms(draw_phantoms, tmp_path):
    assert is_phantoms(draw_phantoms("ultrasound", 40))
    assert not is_phantoms(tmp_path)
