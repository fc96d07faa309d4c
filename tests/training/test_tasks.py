"""Tasks: supported networks, accepted records, and metrics computed by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mtlkit.data import Exam, LesionDataset, MammographyDataset, Record
from mtlkit.models import create_model
from mtlkit.models.hybrid_vssm import HybridVSSMOutput
from mtlkit.training import Config, TrainingModule, load_config
from mtlkit.training import tasks as module
from mtlkit.training.tasks import HEADS, LOSSES, TASKS, find_task

FOUR_VIEWS = {"backbone": "vssm", "depths": (1,), "dims": (16,), "d_state": 1}


@pytest.mark.parametrize(
    ("name", "options", "served"),
    [
        ("unet", {"encoder": "resnet18"}, "lesion"),
        ("csa_moe", {}, "views"),
        ("hybrid_vssm", FOUR_VIEWS, "mammography"),
        ("medmamba_t", {"depths": (1,), "dims": (16,)}, None),
    ],
)
def test_a_network_serves_one_task(name, options, served):
    network = create_model(name, **options)
    assert [task for task in TASKS if find_task(task).serves(network)] == ([] if served is None else [served])
    assert not any(task.serves(torch.nn.Linear(1, 1)) for task in TASKS.values())


def test_classes_are_called_what_the_data_say():
    assert HEADS["class"].names(("benign", "malignant")) == ("benign", "malignant")
    assert HEADS["birads"].names((1, 5)) == ("BI-RADS 1", "BI-RADS 5")
    exams = [Exam(str(i), (None,) * 4, (i, 1), (-1, 2), str(i)) for i in range(2)]
    assert HEADS["label"].labels(exams).tolist() == [[0, 1], [1, 1]]
    assert HEADS["birads"].labels(exams).tolist() == [[-1, 2], [-1, 2]]


def test_kinds_of_records():
    assert (find_task("lesion").record, find_task("mammography").record) == (Record, Exam)
    with pytest.raises(ValueError, match="busi: contains single images, which the task 'mammography' does not accept"):
        find_task("mammography").check_kind(Path("busi"), Record)
    with pytest.raises(ValueError, match="cmmd: contains four-view mammograms, which the task 'views' does not accept"):
        find_task("views").check_kind(Path("cmmd"), Exam)
    data = Config().change({"data": {"copies": 2, "birads": [1, 5], "classes": ["a", "b"]}}).data
    assert find_task("views").open_options(data) == {"classes": ("a", "b")}
    assert find_task("mammography").open_options(data) == {"birads": (1, 5)}
    records = [Record("a", Path("a.png"), 0, (), "a")]
    items = find_task("lesion").items(records, data, training=True)
    assert (type(items), len(items)) == (LesionDataset, 3)
    assert len(find_task("lesion").items(records, data)) == 1
    exams = [Exam("a", (None,) * 4, (0, 1), (0, 1), "a")]
    assert type(find_task("mammography").items(exams, data, training=True)) is MammographyDataset


def test_breasts_count_one_by_one():
    task, network = find_task("mammography"), create_model("hybrid_vssm", **FOUR_VIEWS, tasks=("label",))
    metrics = task.metrics(network)
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [2.0, 0.0]]])  # (B, 2, K)
    batch = {"label": torch.tensor([[0, 1], [1, -1]])}
    task.update(metrics, network, HybridVSSMOutput(logits, None, None), batch)
    figures = task.figures(metrics)
    assert figures["label_accuracy"] == pytest.approx(2 / 3)
    assert figures["label_images"] == 3
    assert figures["combined"] == figures["label_auc"] == 0.75
    assert not any(name.startswith("birads") for name in figures)


def test_another_task_is_an_entry_of_the_table(monkeypatch):
    task = replace(TASKS["views"], name="views too", combined={"auc": 2.0})
    monkeypatch.setitem(module.TASKS, task.name, task)
    config = replace(load_config("csa_moe"), second_stage=None)
    object.__setattr__(config, "task", task.name)
    learner = TrainingModule(create_model("csa_moe"), config)
    assert learner.task is task
    assert {"loss", "auc", "combined", "gate_tumor"} < set(learner.figure_names())


def test_names_of_losses():
    assert {"loss", "segmentation", "classification", "gates", "label", "birads"} == LOSSES
