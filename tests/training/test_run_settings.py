"""Settings of a recipe take effect: best epoch, stopping, schedule, clipping, precision, and their metrics.

The epochs' metrics are scripted, so that the behaviour of the run reveals each setting.
"""

import csv
import json
import shutil

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from mtlkit.models import from_pretrained
from mtlkit.training import TrainingModule, train

ONE_BATCH = {"limit_train_batches": 2, "limit_val_batches": 1, "limit_test_batches": 1}


class Watch(Callback):
    """Records each step of each stage."""

    def __init__(self) -> None:
        self.seeds, self.norms, self.clipped, self.steps, self.kinds = [], [], [], [], set()

    def setup(self, trainer, module, stage):
        module.model.register_forward_pre_hook(lambda model, arguments: self._before(module))

    def _before(self, module):
        if module.training:
            self.seeds.append(torch.initial_seed())
        weights = next(module.model.parameters()).dtype
        self.kinds.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weights)

    @staticmethod
    def _norm(module) -> float:
        gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        return torch.cat(gradients).double().norm().item()

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.norms.append(self._norm(module))

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.clipped.append(self._norm(module))
        self.steps.append(trainer.global_step)


@pytest.fixture
def scripted(monkeypatch):
    """Sets the epochs' metrics by name, the same in each stage."""

    def script(**figures: list[float]) -> None:
        real = TrainingModule._figures

        def told(self, metrics):
            found = real(self, metrics)
            if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
                found |= {name: torch.tensor(values[self.current_epoch]) for name, values in figures.items()}
            return found

        monkeypatch.setattr(TrainingModule, "_figures", told)

    return script


def run(config, data, out, **trainer):
    watch = Watch()
    train(config, data, out, progress=False, callbacks=[watch], trainer=ONE_BATCH | trainer)
    return watch


def rows(out, stage=1):
    with (out / f"stage{stage}/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_best_epoch_stopping_and_schedule_have_figures_and_modes_of_their_own(tmp_path, ultrasound, small, scripted):
    """In the second stage with the opposite modes; without a limit, gradients are not clipped."""
    up, down = [0.1, 0.4, 0.2, 0.3, 0.9], [0.9, 0.6, 0.8, 0.7, 0.1]
    scripted(iou=up, accuracy=down)
    stopping = {"epochs": 5, "monitor": "val/iou", "mode": "max", "patience": 2}
    schedule = {"cosine_floor": None, "monitor": "val/accuracy", "mode": "min", "patience": 0, "factor": 0.5}
    second = {
        "stopping": {"monitor": "val/accuracy", "mode": "min", "patience": 1},
        "schedule": {"monitor": "val/iou", "mode": "max"},
    }
    changes = {"stopping": stopping, "schedule": schedule, "second_stage": second, "optimizer": {"clip": None}}
    watch = run(small.change(changes), ultrasound, tmp_path / "run")
    for stage, epochs in ((1, 4), (2, 3)):
        folder = tmp_path / f"run/stage{stage}"
        assert json.loads((folder / "done.json").read_text()) == {"epochs": epochs}
        assert torch.load(folder / "best.ckpt", weights_only=True)["epoch"] == 1
        table = rows(tmp_path / "run", stage)
        assert [float(row["val/iou"]) for row in table] == pytest.approx(up[:epochs])
        rates = [float(row["lr"]) / small.optimizer.lr for row in table]
        assert rates == pytest.approx([1, 1, 1, 0.5][:epochs])  # epoch 2 was worse than epoch 1
    best = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]
    saved = from_pretrained(tmp_path / "run/model").state_dict()
    assert all(torch.equal(value, best[f"model.{name}"]) for name, value in saved.items()), "not the best epoch's"
    assert watch.clipped == watch.norms
    assert len(watch.norms) == 2 * (4 + 3)
    assert len(set(watch.seeds)) == len(watch.seeds) == 2 * (4 + 3), "dropout is the same in two batches"
    assert watch.kinds == {torch.float32}


def test_clipping_and_precision(tmp_path, ultrasound, small):
    """Also an additional argument of the trainer."""
    config = small.change({"optimizer": {"clip": 1e-3}, "precision": "bf16-mixed", "stopping": {"epochs": 1}})
    watch = run(config, ultrasound, tmp_path / "run", accumulate_grad_batches=2)
    assert watch.steps == [0, 1]
    (norm,) = watch.norms
    assert norm > 2e-3
    assert watch.clipped[-1] == pytest.approx(1e-3, rel=1e-3)
    assert watch.kinds == {torch.bfloat16}


def test_the_recipe_accumulates_gradients(tmp_path, ultrasound, small):
    config = small.change({"optimizer": {"accumulate": 2}, "stopping": {"epochs": 1}})
    assert run(config, ultrasound, tmp_path / "run").steps == [0, 1]


def test_averaged_weights_are_what_is_judged_and_saved(tmp_path, ultrasound, small):
    """By hand: after each step, decay times the average plus (1 - decay) times the weights; from the best epoch."""
    config = small.change({"ema": 0.5, "stopping": {"epochs": 3}, "optimizer": {"lr": 1e-2}})
    steps = []

    class Weights(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            steps.append([p.detach().clone() for p in module.model.parameters()])

    train(config, ultrasound, tmp_path / "run", progress=False, callbacks=[Weights()])
    averages, mean = [], steps[0]
    for step in steps[1:]:
        mean = [0.5 * a + 0.5 * b for a, b in zip(mean, step, strict=True)]
        averages.append(mean)
    combined = [float(row["val/combined"]) for row in rows(tmp_path / "run")]
    best = combined.index(max(combined))
    expected = averages[(best + 1) * len(steps) // 3 - 2]
    saved = from_pretrained(tmp_path / "run/model")
    for found, value in zip(saved.parameters(), expected, strict=True):
        torch.testing.assert_close(found, value)
    figures = json.loads((tmp_path / "run/result.json").read_text())
    assert figures["val/combined"] == pytest.approx(combined[best], abs=1e-6)


def test_averages_are_resumed_exactly(tmp_path, ultrasound, small):
    config = small.change({"ema": 0.9, "stopping": {"epochs": 3}})

    class Stop(Callback):
        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 2:
                raise KeyboardInterrupt

    train(config, ultrasound, tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        train(config, ultrasound, tmp_path / "run", progress=False, callbacks=[Stop()])
    train(config, ultrasound, tmp_path / "run", progress=False, resume=True)
    for name in ("result.json", "stage1/metrics.csv"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_drop_duplicates_leaves_copies_out_of_the_drawn_split(tmp_path, ultrasound, small):
    data = shutil.copytree(ultrasound, tmp_path / "busi")
    for end in ("", "_mask"):
        shutil.copy(data / f"benign/benign (1){end}.png", data / f"benign/benign (901){end}.png")
    config = small.change({"stopping": {"epochs": 1}})
    run(config.change({"data": {"drop_duplicates": True}}), data, tmp_path / "dropped")
    split = json.loads((tmp_path / "dropped/split.json").read_text())
    assert split["unused"] == ["benign/benign (901)"]
    run(config, data, tmp_path / "kept")
    assert json.loads((tmp_path / "kept/split.json").read_text())["unused"] == []
