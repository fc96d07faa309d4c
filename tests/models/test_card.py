"""Model cards: of a plain network, of one from a run, and of one that was changed afterwards."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from mtlkit.models import Origin, Result, create_model, list_models
from mtlkit.models.card import CITATIONS, card_of, citation, is_figure, print_of_parameters

PUBLISHED = {"mbdi", "btinet", "csa_moe", "hybrid_vssm", "medmamba_t", "vm_unet", "vmamba_t_v0"}
RESULT = Result(
    "BUSI",
    "test",
    {"iou": (0.75, 0.7, 0.8), "auc": (0.9, 0.85, 0.95)},
    intervals="percentiles of 2,000 bootstrap samples",
    images=120,
    remarks=("There is no image of the class normal.",),
)


@pytest.fixture
def model():
    return create_model("medmamba_t", depths=(1, 1), dims=(16, 32), num_classes=2)


@pytest.fixture
def origin(model) -> Origin:
    return Origin(
        print_of_parameters(model),
        "medmamba_t",
        "BUSI",
        layout="busi",
        classes={"class": ("benign", "malignant")},
        parts={"train": 500, "val": 100, "test": 120},
        images="Images are resized to 64 x 64 pixels.",
        results=(RESULT,),
        calibration={"class": {"temperature": 1.5, "images": 100, "thresholds": {"youden": 0.4}}},
        recipe={"task": "lesion", "seed": 42},
    )


def section(card: ModelCard, title: str) -> str:
    return re.search(rf"\n## {title}\n\n(.*?)(?=\n## |\n---\n|\Z)", card.text, flags=re.DOTALL)[1].strip()


def test_of_a_network_alone(model, tmp_path):
    card = card_of(model)
    card.save(tmp_path / "README.md")
    read = ModelCard.load(tmp_path / "README.md")
    assert read.data.to_dict() == card.data.to_dict()
    assert read.data.library_name == "mtlkit"
    assert read.data.pipeline_tag == "image-classification"
    assert read.data.eval_results is None
    assert read.data.license is None
    assert section(read, "Data") == "The training data of these parameters is unknown."
    assert section(read, "Metrics") == "No metrics are known for this network."
    assert "not a medical device" in section(read, "Limits")
    assert "ask the authors" in section(read, "Licence")
    assert "## Recipe" not in read.text
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"MedMamba, {count:,} parameters" in read.text


def test_of_a_network_from_a_run(model, origin, tmp_path):
    model.origin = origin
    card_of(model, "someone/net", licence="CC-BY-NC-4.0").save(tmp_path / "README.md")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    iou, auc = card.data.eval_results
    assert (iou.task_type, iou.metric_type, iou.metric_value) == ("image-segmentation", "iou", 0.75)
    assert (iou.dataset_name, iou.dataset_split, iou.metric_args) == ("BUSI", "test", {"interval": [0.7, 0.8]})
    assert (auc.task_type, auc.metric_type, auc.metric_value) == ("image-classification", "auc", 0.9)
    assert "| IoU | 0.750 | 0.700 to 0.800 |" in section(card, "Metrics")
    assert "BUSI, test part, 120 images:" in section(card, "Metrics")
    assert "500 train, 100 val, 120 test" in section(card, "Data")
    assert "benign, malignant" in section(card, "Data")
    assert "divide the logits by 1.500" in section(card, "Calibration")
    assert "Youden's index: 0.400" in section(card, "Calibration")
    assert RESULT.remarks[0] in section(card, "Limits")
    assert yaml.safe_load(section(card, "Recipe").strip("`").removeprefix("yaml")) == {"task": "lesion", "seed": 42}
    assert citation("MedMamba") in section(card, "Citation")
    assert 'from_pretrained("someone/net")' in section(card, "How to load it")


def test_the_way_to_load_runs(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "path" / "of" / "this" / "folder")
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", card_of(model).text, flags=re.DOTALL)[1]
    assert len(code.strip().splitlines()) == 3
    found = {}
    exec(compile(code, "README.md", "exec"), found)
    assert not found["model"].training


def test_figures_do_not_outlive_their_parameters(model, origin):
    model.origin = origin
    with torch.no_grad():
        model.head.bias[0] += 1e-6
    card = card_of(model)
    assert card.data.eval_results is None
    assert "have changed since the run" in section(card, "Metrics")
    assert "have changed since the run" in section(card, "Limits")
    assert "not been calibrated" in section(card, "Calibration")
    assert "500 train" in section(card, "Data")  # the training data is still described


def test_phantoms_say_nothing_about_patients(model, origin):
    model.origin = replace(origin, phantoms=True)
    card = card_of(model)
    assert "its results say nothing about patients" in section(card, "Limits")
    assert "not patients" in section(card, "Data")


def test_results_without_intervals(model, origin):
    model.origin = replace(origin, results=(Result("BUSI", "val", {"accuracy": (0.5, None, None)}),))
    card = card_of(model)
    assert "| metric | value |\n" in card.text
    assert card.data.eval_results[0].metric_args is None
    assert "metrics there are optimistic" in section(card, "Limits")


def test_another_licence_has_its_name(model):
    data = card_of(model, licence="For study only").data
    assert (data.license, data.license_name) == ("other", "For study only")


def test_names_are_no_markup(model, origin):
    model.origin = replace(origin, data="a|b*c*", results=(replace(RESULT, data="---\nlicense: mit"),))
    card = ModelCard(str(card_of(model)))
    assert r"a\|b\*c\*" in card.text
    assert card.data.license is None


def test_a_result_takes_the_place_of_the_same_part(origin):
    better = replace(RESULT, figures={"iou": (0.8, 0.75, 0.85)})
    other = replace(RESULT, data="WHU", part="all")
    found = origin.with_result(better).with_result(other)
    assert found.results == (other, better)


def test_origins_through_json(origin):
    assert Origin.from_dict(json.loads(json.dumps(origin.to_dict() | {"of_a_later_version": 1}))).results == (RESULT,)


@pytest.mark.parametrize(
    "change",
    [
        {"results": [{"data": "x", "part": "test", "figures": {"iou": "high"}}]},
        {"results": [{"data": "x", "part": "test", "figures": {"iou": [math.nan, None, None]}}]},
        {"results": 5},
        {"calibration": {"class": {"temperature": "warm"}}},
        {"classes": {"class": 3}},
        {"parts": ["train"]},
        {"data": None},
        {"recipe": "x"},
    ],
)
def test_damaged_origins(origin, change):
    with pytest.raises(ValueError, match="origin: expected the form that mtlkit writes"):
        Origin.from_dict(json.loads(json.dumps(origin.to_dict() | change)))


def test_figures_are_numbers():
    with pytest.raises(ValueError, match="figures: expected finite numbers, got nan for 'auc'"):
        Result("BUSI", "test", {"auc": (math.nan, None, None)})


def test_losses_are_not_figures():
    names = ("iou", "hd95_mm", "label_auc", "loss", "gate_seg_level1", "images", "combined", "empty")
    assert [name for name in names if is_figure(name)] == ["iou", "hd95_mm", "label_auc"]


def test_networks_of_publications_have_a_citation():
    kinds = {type(create_model(name, device="meta")).__name__ for name in list_models() if name in PUBLISHED}
    assert kinds == set(re.findall(r"^@misc{(\w+),$", CITATIONS.read_text(), flags=re.MULTILINE))
    for kind in kinds:
        entry = citation(kind)
        assert entry.count("{") == entry.count("}")
        assert re.search(r"eprint = \{\d{4}\.\d{5}\}", entry)
    assert citation("ImageClassifier") == ""
