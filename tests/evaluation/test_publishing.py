"""Publishing a run: the card contains its metrics or those of an evaluation with intervals, and no path."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard

from mtlkit._files import write_json
from mtlkit.errors import ChangedError, DataError, ExistsError
from mtlkit.evaluation import evaluate, publish
from mtlkit.models import from_pretrained
from mtlkit.training.calibration import Calibration, as_values


@pytest.fixture(scope="module")
def evaluation(lesion, tmp_path_factory):
    """An evaluation of a run, and its return value."""
    folder = tmp_path_factory.mktemp("publishing") / "evaluation"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtlkit.evaluation.runner.draw_all", lambda *_, **__: {})
        return folder, evaluate(lesion, None, folder, samples=20)


def test_the_folder(lesion, evaluation, tmp_path):
    folder, metrics = evaluation
    assert publish(lesion, tmp_path / "card", evaluations=[folder], licence="mit") is None
    assert lesion.model.origin is None  # the model is unchanged
    card = ModelCard.load(tmp_path / "card" / "README.md")
    found = {result.metric_type: result for result in card.data.eval_results}
    for name in ("iou", "accuracy"):
        figure = metrics["figures"][name]
        assert found[name].metric_value == figure["value"]
        assert found[name].metric_args == {"interval": [figure["low"], figure["high"]]}
    assert {result.dataset_split for result in found.values()} == {"test"}
    assert f"{metrics['counts']['images']} images" in card.text
    assert "not patients" in card.text  # the data set consists of phantoms
    assert str(lesion.data.parent) not in (tmp_path / "card" / "README.md").read_text()
    assert str(lesion.data.parent) not in (tmp_path / "card" / "config.json").read_text()
    twin = from_pretrained(tmp_path / "card")
    assert torch.equal(next(twin.parameters()), next(lesion.model.parameters()))


def test_without_an_evaluation(lesion, tmp_path):
    shutil.copytree(lesion.folder, tmp_path / "run")
    figures = {"val/iou": 0.5, "test/iou": 0.25, "test/loss": 1.0, "test/auc": None}
    write_json(tmp_path / "run" / "result.json", figures, force=True)
    write_json(tmp_path / "run" / "calibration.json", as_values({"class": Calibration(2.0, 40, {"youden": 0.5})}))
    publish(tmp_path / "run", tmp_path / "card")
    card = ModelCard.load(tmp_path / "card" / "README.md")
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("iou", 0.25, "test")
    assert "divide the logits by 2.000" in card.text


def test_what_was_edited_is_named(lesion, tmp_path):
    publish(lesion, tmp_path / "card")
    with pytest.raises(ExistsError):
        publish(lesion, tmp_path / "card")
    publish(lesion, tmp_path / "card", force=True)
    (tmp_path / "card" / "README.md").write_text("mine")
    with pytest.raises(ChangedError, match=r"README.md: has been changed since mtlkit wrote it"):
        publish(lesion, tmp_path / "card", force=True)
    assert (tmp_path / "card" / "README.md").read_text() == "mine"


def test_to_the_hub(lesion, monkeypatch, tmp_path):
    pushed = {}

    def push(self, repo_id, **given):
        pushed.update(given, repo_id=repo_id, data=self.origin.data)
        return f"https://example.org/{repo_id}"

    monkeypatch.setattr("mtlkit.models.Pretrained.push_to_hub", push)
    found = publish(lesion, repo_id="someone/net", licence="mit", private=True)
    assert found == "https://example.org/someone/net"
    assert pushed == {"repo_id": "someone/net", "licence": "mit", "private": True, "data": lesion.data.name}


def test_evaluations_of_other_things(lesion, plain, evaluation, tmp_path):
    folder, _ = evaluation
    with pytest.raises(DataError, match=r"is an evaluation of .*, not of "):
        publish(plain, tmp_path / "card", evaluations=[folder])
    with pytest.raises(DataError, match="is not the folder of an evaluation"):
        publish(lesion, tmp_path / "card", evaluations=[lesion.folder])
    shutil.copytree(folder, tmp_path / "damaged")
    metrics = json.loads((folder / "metrics.json").read_text())
    write_json(tmp_path / "damaged" / "metrics.json", metrics | {"figures": {"iou": 0.5}}, force=True)
    with pytest.raises(DataError, match=r"metrics.json: is not as an evaluation writes it \(figures.iou"):
        publish(lesion, tmp_path / "card", evaluations=[tmp_path / "damaged"])
    write_json(tmp_path / "damaged" / "metrics.json", metrics | {"runs": ["a", "b"]}, force=True)
    with pytest.raises(DataError, match="is an evaluation of several runs"):
        publish(lesion, tmp_path / "card", evaluations=[tmp_path / "damaged"])
    assert not (tmp_path / "card").exists()


def test_neither_folder_nor_repository(lesion):
    with pytest.raises(ValueError, match="out, repo_id: expected at least one of them"):
        publish(lesion)
