"""Runs: files in the folder, resuming after a kill, two processes, the best epoch, and files that are kept."""

import csv
import json
import math
import runpy
import shutil
import signal
import sys

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from mtlkit.cli import main
from mtlkit.cli.train import parse_changes
from mtlkit.data import DataError
from mtlkit.data.splits import read_split
from mtlkit.models import create_model, from_pretrained
from mtlkit.training import create_module, load_config, load_run, recipe_schema, train
from mtlkit.training.run import lay_back, lay_out, synchronise


def weights(run, name="last", stage=1):
    """The network's weights in a checkpoint."""
    state = torch.load(run / f"stage{stage}" / f"{name}.ckpt", weights_only=True)["state_dict"]
    return {key: value for key, value in state.items() if key.startswith("model.")}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(got[key], value), key


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ultrasound, two_stages):
    """An uninterrupted run with two stages, and its metrics."""
    out = tmp_path_factory.mktemp("finished") / "run"
    return out, train(two_stages, ultrasound, out, progress=False)


def test_folder(finished):
    out, figures = finished
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    stage = {"best.ckpt", "last.ckpt", "metrics.csv", "done.json"}
    wanted = {"config.yaml", "split.json", "result.json", "model/model.safetensors", "model/config.json"}
    assert names >= wanted | {f"stage{i}/{name}" for i in (1, 2) for name in stage}
    with (out / "stage1/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert {"lr", "train/loss", "val/iou", "val/combined"} <= set(rows[0])
    known = create_module(load_config(out / "config.yaml")).figure_names()
    assert {f"val/{name}" for name in known} == {name for name in rows[0] if name.startswith("val/")}
    saved = json.loads((out / "result.json").read_text())
    assert {name: math.nan if value is None else value for name, value in saved.items()} == pytest.approx(
        figures, nan_ok=True
    )
    assert {name.partition("/")[0] for name in figures} == {"val", "test"}


def test_saved_network_is_the_best_of_the_last_stage(finished):
    out, _ = finished
    model = from_pretrained(out / "model")
    best = weights(out, "best", stage=2)
    assert_same({f"model.{key}": value for key, value in model.state_dict().items()}, best)


def test_second_stage_starts_from_the_best_of_the_first(finished):
    out, _ = finished
    first, second = weights(out, "best", 1), weights(out, "last", 2)
    moved = {key for key in first if not torch.equal(first[key], second[key])}
    assert moved
    assert all(".upa." in key for key in moved)


def test_figures_are_those_of_the_best_epoch(finished):
    out, _ = finished
    with (out / "stage1/metrics.csv").open() as file:
        combined = [float(row["val/combined"]) for row in csv.DictReader(file)]
    kept = torch.load(out / "stage1/best.ckpt", weights_only=False)["epoch"]
    assert combined[kept] == max(combined)


def test_same_seed_same_weights(tmp_path, ultrasound, small):
    """Also with synchronised BatchNorm, which has no effect with one process."""
    config = small.change({"stopping": {"epochs": 1}})
    for name in ("a", "b"):
        train(config.change({"sync_batch_norm": name == "b"}), ultrasound, tmp_path / name, progress=False)
    assert_same(weights(tmp_path / "b"), weights(tmp_path / "a"))


KILL = """
import os, signal, sys
from lightning.pytorch.callbacks import Callback
from mtlkit.training import load_config, train

class Kill(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if (1 + module.gates_only, trainer.current_epoch, index) == (stage, epoch, 1):
            os.kill(os.getpid(), signal.SIGKILL)

config, data, out = sys.argv[1:4]
stage, epoch = map(int, sys.argv[4:])
train(load_config(config), data, out, progress=False, callbacks=[Kill()])
"""


@pytest.mark.parametrize(("stage", "epoch"), [(1, 2), (2, 1)])
def test_killed_and_resumed_is_as_if_undisturbed(finished, tmp_path, ultrasound, run_python, stage, epoch):
    """Killed within an epoch, after the second batch."""
    undisturbed, figures = finished
    config = undisturbed / "config.yaml"
    (tmp_path / "kill.py").write_text(KILL)
    process = run_python(tmp_path / "kill.py", config, ultrasound, tmp_path / "run", str(stage), str(epoch))
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert (tmp_path / "run/stage1/done.json").exists() == (stage == 2)
    assert not (tmp_path / f"run/stage{stage}/done.json").exists()
    again = train(load_config(config), ultrasound, tmp_path / "run", resume=True, progress=False)
    for stage in (1, 2):
        for name in ("last", "best"):
            assert_same(weights(tmp_path / "run", name, stage), weights(undisturbed, name, stage))
    assert again == pytest.approx(figures, nan_ok=True)
    assert (tmp_path / "run/stage1/metrics.csv").read_text() == (undisturbed / "stage1/metrics.csv").read_text()


def test_a_finished_run_is_left_as_it_is(finished, tmp_path, ultrasound):
    out = shutil.copytree(finished[0], tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.ckpt")}
    again = train(load_config(out / "config.yaml"), ultrasound, out, resume=True, progress=False)
    assert again == pytest.approx(finished[1], nan_ok=True)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.ckpt")}


STEPS = """
import os, sys
import torch
from lightning.pytorch.callbacks import Callback
from torch.nn import SyncBatchNorm
from mtlkit._distributed import batch_norm_over, group_of
from mtlkit.training import load_config, run, train

def normalise(self, x):
    # stands in for torch's kernel, which there is for GPUs alone
    if not self.training:
        return torch.nn.BatchNorm2d.forward(self, x)
    self.num_batches_tracked.add_(1)
    rows = x.transpose(1, -1)
    stats = self.running_mean, self.running_var, self.weight, self.bias, self.momentum, self.eps
    return batch_norm_over(group_of(self), rows.reshape(-1, x.shape[1]), *stats).view(rows.shape).transpose(1, -1)

class Watch(Callback):
    # keeps every gradient
    def __init__(self):
        self.gradients = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        named = module.model.named_parameters()
        self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

watch = Watch()
config, data, out, devices = sys.argv[1:4] + [int(sys.argv[4])]
if devices > 1:
    SyncBatchNorm.forward = normalise
    torch.nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None  # refuses CPUs
    run._check_sync_batch_norm = lambda trainer: None
config = load_config(config).change({"data": {"batch_size": 4 // devices}})
trainer = {"accelerator": "cpu", "devices": devices} | ({"strategy": "ddp"} if devices > 1 else {})
train(config, data, out, progress=False, trainer=trainer, callbacks=[watch])
torch.save(watch.gradients, f"{out}/gradients-{os.environ.get('LOCAL_RANK', 0)}.pt")
"""


def test_two_processes_are_as_one(tmp_path, ultrasound, small, run_python, monkeypatch):
    """Gradients of every step and parameter, weights and metrics, in float64, for the same batches in halves.

    The bounds are wide for float64: where a gradient is almost zero, Adam turns its rounding error into a step.
    """
    options = dict(small.model.options) | {"dropout": 0.0, "freeze_until": "layer1"}
    # 12 images, 3 batches of 4; at the end each process evaluates all images, in batches of this size
    data = {"augment": "none", "fractions": [0.5, 0.25, 0.25], "eval_batch_size": 4}
    # the demo's Tversky loss is over the batch instead of single images, and so are the targets of the gates
    loss = {"sync": True, "gates": 1.0}
    changes = {"model": {"options": options}, "data": data, "loss": loss, "precision": "64-true"}
    changes |= {"sync_batch_norm": True, "stopping": {"epochs": 1}}
    small.change(changes).save(tmp_path / "config.yaml")
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    arguments = [str(tmp_path / "config.yaml"), str(ultrasound)]
    process = run_python(script, *arguments, tmp_path / "two", "2")
    assert process.returncode == 0, process.stderr
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments, str(tmp_path / "one"), "1"])
    runpy.run_path(str(script))

    one, *both = (
        torch.load(tmp_path / name) for name in ("one/gradients-0.pt", "two/gradients-0.pt", "two/gradients-1.pt")
    )
    assert [len(steps) for steps in (one, *both)] == [3, 3, 3]
    for steps in both:
        for got, expected in zip(steps, one, strict=True):
            assert got.keys() == expected.keys()
            assert {value.dtype for value in expected.values()} == {torch.float64}
            assert any(".upa." in name for name in expected)
            for name, value in expected.items():
                torch.testing.assert_close(got[name], value, rtol=1e-6, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-6, atol=1e-7)
    first, second = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert second == pytest.approx(first, abs=1e-6)


@pytest.mark.parametrize("name", ["tf_efficientnet_b4", "resnet18"])
def test_synchronised_batch_norm_keeps_all_else(name):
    """The activations in timm's BatchNorm, the Parameters, the names in the checkpoint, and what is frozen."""
    model = create_model("mbdi", encoder=name, freeze_until="bn1", decoder_dims=(16, 16, 12, 8), clf_dim=16).eval()
    before, images = model.state_dict(keep_vars=True), torch.randn(2, 3, 32, 32)
    expected = model(images)
    model = synchronise(model)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, torch.nn.SyncBatchNorm) for norm in norms)
    assert all(value is before[key] for key, value in model.state_dict(keep_vars=True).items())
    assert torch.equal(model(images).seg_logits, expected.seg_logits)
    assert torch.equal(model(images).cls_logits, expected.cls_logits)
    assert [norm.training for norm in model.train().modules() if norm in norms].count(False) == 1


def test_batch_norm_is_synchronised_on_gpus_alone(tmp_path, ultrasound, small):
    trainer = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    words = "sync_batch_norm: expected false on a CPU, for which torch has no SyncBatchNorm, got true for 2 processes"
    with pytest.raises(ValueError, match=words):
        train(small.change({"sync_batch_norm": True}), ultrasound, tmp_path / "run", progress=False, trainer=trainer)
    with pytest.raises(ValueError, match="use the recipe's sync_batch_norm instead"):
        train(small, ultrasound, tmp_path / "run", trainer={"sync_batchnorm": True})


TWO_STAGES = """
import os, sys
import torch
from lightning.pytorch.callbacks import Callback
from mtlkit.training import load_config, train

rank = os.environ.get("LOCAL_RANK", 0)
config, data, out = load_config(sys.argv[1]), *sys.argv[2:]
trainer = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}

class Keep(Callback):
    # what each process has when an epoch ends, and how far it has come
    def on_train_epoch_end(self, trainer, module):
        stage = 1 + module.gates_only
        kept = {"steps": trainer.global_step, "state": module.model.state_dict()}
        torch.save(kept, f"{out}-{stage}-{trainer.current_epoch}-{rank}.pt")

class Fail(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if (module.gates_only, trainer.current_epoch, index) == (True, 1, 0):
            raise ArithmeticError

train(config, data, out, progress=False, trainer=trainer, callbacks=[Keep()])
try:
    train(config, data, f"{out}-again", progress=False, trainer=trainer, callbacks=[Fail()])
except ArithmeticError:
    train(config, data, f"{out}-again", progress=False, trainer=trainer, resume=True)
"""


def test_two_stages_on_two_processes(tmp_path, ultrasound, two_stages, run_python):
    """Both run both stages with the same weights; a failure in the second stage can be resumed without a difference."""
    config = two_stages.change({"data": {"fractions": [0.5, 0.3, 0.2]}, "stopping": {"epochs": 2}})
    config.save(tmp_path / "config.yaml")
    (tmp_path / "script.py").write_text(TWO_STAGES)
    out, again = tmp_path / "run", tmp_path / "run-again"
    process = run_python(tmp_path / "script.py", tmp_path / "config.yaml", ultrasound, out)
    assert process.returncode == 0, process.stderr
    split = read_split(out / "split.json")
    assert (len(split.train), len(split.val), len(split.test)) == (11, 8, 5)
    for stage in (1, 2):
        for epoch in (0, 1):
            first, second = (torch.load(f"{out}-{stage}-{epoch}-{rank}.pt") for rank in (0, 1))
            assert first["steps"] == second["steps"] == 2 * (epoch + 1)  # 6 images each, in batches of 4
            assert_same(second["state"], first["state"])
        kept = {f"model.{name}": value for name, value in first["state"].items()}
        assert_same(weights(out, "last", stage), kept)
        assert_same(weights(again, "last", stage), kept)
        assert_same(weights(again, "best", stage), weights(out, "best", stage))
        assert (again / f"stage{stage}/metrics.csv").read_text() == (out / f"stage{stage}/metrics.csv").read_text()
    moved = {key for key, value in weights(out, "best", 1).items() if not torch.equal(value, kept[key])}
    assert moved
    assert all(".upa." in key for key in moved)
    assert (again / "result.json").read_text() == (out / "result.json").read_text()
    # of all images, like the evaluation by one process
    one = shutil.copytree(out, tmp_path / "one")
    (one / "result.json").unlink()
    figures = json.loads((out / "result.json").read_text())
    judged = train(config, ultrasound, one, resume=True, progress=False)
    assert {name: None if math.isnan(value) else value for name, value in judged.items()} == pytest.approx(figures)


def test_early_stopping(tmp_path, ultrasound, small):
    config = small.change(
        {
            "optimizer": {"lr": 1e-12},
            "data": {"augment": "none"},
            "model": {"options": dict(small.model.options) | {"dropout": 0.0}},
            "stopping": {"epochs": 6, "patience": 1, "min_delta": 1.0},
        }
    )
    train(config, ultrasound, tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run/stage1/done.json").read_text()) == {"epochs": 2}


def test_mammograms_train(tmp_path, mammograms):
    options = {"backbone": "vssm", "depths": [1], "dims": [16], "d_state": 1}
    changes = {
        "model": {"options": options},
        "data": {"size": 32, "batch_size": 4, "workers": 0, "fractions": [0.6, 0.4, 0.0]},
        "stopping": {"epochs": 1},
        "loss": {"class_weights": False},
    }
    figures = train(load_config("hybrid_vssm").change(changes), mammograms, tmp_path / "run", progress=False)
    assert {"val/label_auc", "val/birads_f1_macro", "val/combined"} <= set(figures)
    assert not any(name.startswith("test/") for name in figures)
    known = create_module(load_config(tmp_path / "run/config.yaml")).figure_names()
    assert set(figures) == {f"val/{name}" for name in known}


def test_labels_alone_train_where_no_birads_is_known(tmp_path, mammograms):
    """As in CMMD's own table; with class weights, as in the recipe."""
    data = shutil.copytree(mammograms, tmp_path / "cmmd")
    (table,) = data.glob("TOMPEI*.csv")
    with table.open(newline="") as file:
        rows = [[row["ID"], row["LeftRight"], row["classification"]] for row in csv.DictReader(file)]
    table.unlink()
    with (data / "CMMD_clinicaldata_revision.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["ID1", "LeftRight", "classification"], *rows])
    options = {"backbone": "vssm", "depths": [1], "dims": [16], "d_state": 1}
    changes = {
        "data": {"size": 32, "batch_size": 4, "workers": 0, "fractions": [0.5, 0.25, 0.25]},
        "stopping": {"epochs": 1, "monitor": "val/label_auc"},
    }
    config = load_config("hybrid_vssm").change(changes)
    both, alone = ({"model": {"options": options | {"tasks": tasks}}} for tasks in (["label", "birads"], ["label"]))
    with pytest.raises(ValueError, match=r"model.options: expected a network without the classifier 'birads'"):
        train(config.change(both), data, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    figures = train(config.change(alone), data, tmp_path / "run", progress=False)
    assert {"test/label", "test/label_auc", "test/combined"} <= set(figures)
    assert not any("birads" in name for name in figures)
    run = load_run(tmp_path / "run")
    assert run.tasks == {"label": ("benign or normal", "malignant")}
    found = run.predict(next(iter(run.loader(run.open_data().records))))
    assert set(found) == {"label", "gates"}


# --- bad input --------------------------------------------------------------------------------------------------------


def test_folders_that_may_not_be_used(finished, tmp_path, ultrasound, small):
    out = shutil.copytree(finished[0], tmp_path / "run")
    with pytest.raises(DataError, match=r"there is a run already$"):
        train(small, ultrasound, out)
    with pytest.raises(DataError, match="differs from the recipe of the run to be continued"):
        train(small.change({"seed": 7}), ultrasound, out, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("x")
    (tmp_path / "other/config.yaml").write_text("mine: true")
    for force in (False, True):
        with pytest.raises(DataError, match="no list says that mtlkit wrote what is in it"):
            train(small, ultrasound, tmp_path / "other", force=force)
    with pytest.raises(DataError, match="expected a folder, found a file"):
        train(small, ultrasound, tmp_path / "other/thesis.tex")
    assert (tmp_path / "other/thesis.tex").read_text() == "x"


def test_unknown_figure_is_named(tmp_path, ultrasound, small, capsys):
    config = small.change({"stopping": {"monitor": "val/iuo"}})
    with pytest.raises(
        ValueError, match=r"stopping.monitor: there is no metric 'val/iuo'; there are: val/accuracy, val/"
    ):
        train(config, ultrasound, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    config.save(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match=r"a.yaml: stopping.monitor: .*\(did you mean 'val/iou'\?\)"):
        train(str(tmp_path / "a.yaml"), ultrasound, tmp_path / "run", progress=False)
    assert main(["train", str(tmp_path / "a.yaml"), "--data", str(ultrasound), "--out", str(tmp_path / "run")]) == 2
    assert f"{tmp_path / 'a.yaml'}: stopping.monitor: there is no metric" in capsys.readouterr().err
    config = small.change({"schedule": {"monitor": "val/iuo"}})
    with pytest.raises(ValueError, match=r"schedule.monitor: there is no metric 'val/iuo'; there are: val/accuracy"):
        train(config, ultrasound, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"batch_size": 1}}, "data.batch_size: expected at least 2, for the BatchNorm of btinet, got 1"),
        ({"data": {"size": 20}}, "images: expected shape .* H and W at least 32"),
        (
            {"model": {"name": "mbdi"}, "second_stage": {}},
            "second_stage: expected none, as mbdi has no gates",
        ),
        ({"model": {"options": {"num_classes": 2}}}, "model.options.num_classes: expected 3"),
        ({"model": {"options": {"num_classes": 3.5}}}, "model.options.num_classes: expected an integer, got 3.5"),
        (
            {"model": {"options": {"upa": False}}, "loss": {"gates": 1.0}},
            r"loss.gates: expected 0, as btinet has no gates with these options .*, got 1",
        ),
        (
            {"model": {"options": {"upa": False}}, "second_stage": {"loss": {"gates": 1.0}}},
            r"second_stage: expected none, as btinet has no gates to train in a second stage",
        ),
        (
            {"model": {"name": "mbdi"}, "second_stage": {"stopping": {"monitor": "val/los"}}},
            "second_stage: expected none, as mbdi has no gates",
        ),
        (
            {"second_stage": {"stopping": {"monitor": "val/los"}}},
            r"second_stage.stopping.monitor: there is no metric 'val/los'; .*\(did you mean 'val/loss'\?\)",
        ),
        (
            {"task": "views", "model": {"name": "csa_moe", "options": {"num_classes": 3}}, "loss": {"gates": 1.0}},
            "loss.gates: expected 0, as the task 'views' has no loss of gates, got 1",
        ),
        ({"task": "mammography"}, r"busi: contains single images, which the task 'mammography' does not accept"),
    ],
)
def test_a_recipe_that_does_not_fit_leaves_no_folder(tmp_path, ultrasound, small, changes, words):
    """The next attempt does not need --force, and one with --force does not delete an existing run."""
    with pytest.raises(ValueError, match=words):
        train(small.adjust(changes), ultrasound, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_force_loses_no_run_to_a_recipe_that_does_not_fit(finished, tmp_path, ultrasound, small):
    out = shutil.copytree(finished[0], tmp_path / "run")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"data.batch_size: expected at least 2"):
        train(small.change({"data": {"batch_size": 1}}), ultrasound, out, force=True, progress=False)
    with pytest.raises(DataError, match="there is no such folder"):
        train(small, tmp_path / "nowhere", out, force=True, progress=False)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    train(small.change({"stopping": {"epochs": 1}}), ultrasound, out, force=True, progress=False)
    assert not (out / "stage2").exists()


@pytest.mark.parametrize("name", ["stage2/last.ckpt", "stage2/best.ckpt", "stage1/best.ckpt"])
def test_damaged_and_missing_checkpoints_are_named(finished, tmp_path, ultrasound, name):
    out = shutil.copytree(finished[0], tmp_path / "run")
    (out / "result.json").unlink()
    if name == "stage2/last.ckpt":
        (out / "stage2/done.json").unlink()
    config, path = load_config(out / "config.yaml"), out / name
    path.write_bytes(path.read_bytes()[:10_000])
    for words in ("damaged", "missing"):
        with pytest.raises(DataError, match=rf"{name}: the checkpoint is {words}$"):
            train(config, ultrasound, out, resume=True, progress=False)
        path.unlink(missing_ok=True)
        if name == "stage2/last.ckpt":
            break  # without it the stage starts again


def test_damaged_figures_are_named(finished, tmp_path, ultrasound):
    out = shutil.copytree(finished[0], tmp_path / "run")
    (out / "result.json").write_text("{")
    with pytest.raises(DataError, match=r"result.json: is not valid JSON"):
        train(load_config(out / "config.yaml"), ultrasound, out, resume=True, progress=False)


def test_wrong_arguments_of_the_trainer(tmp_path, ultrasound, small):
    for trainer, words in (({"devics": 2}, "devics"), ({"accelerator": "abacus"}, "abacus")):
        with pytest.raises(ValueError, match=f"trainer: .*{words}"):
            train(small, ultrasound, tmp_path / "run", progress=False, trainer=trainer)
        assert not (tmp_path / "run").exists()


def test_broken_image_is_named_or_skipped(tmp_path, ultrasound, small):
    data = shutil.copytree(ultrasound, tmp_path / "data")
    (data / "benign/benign (2).png").write_bytes(b"broken")
    config = small.change({"stopping": {"epochs": 1}})
    with pytest.raises(DataError, match=r"benign \(2\).png: cannot be read as an image"):
        train(config, data, tmp_path / "run", progress=False)
    figures = train(config, data, tmp_path / "run", progress=False, skip_bad=True, force=True)
    assert "test/iou" in figures


# --- the command ------------------------------------------------------------------------------------------------------


def test_command(finished, tmp_path, ultrasound, capsys):
    arguments = ["train", str(finished[0] / "config.yaml"), "--data", str(ultrasound), "--out", str(tmp_path / "run")]
    changes = ["--set", "stopping.epochs=1", "--set", "second_stage=null", "--set", "model.options.dropout=0.2"]
    assert main([*arguments, *changes]) == 0
    assert "combined" in capsys.readouterr().out
    config = load_config(tmp_path / "run/config.yaml")
    assert (config.stopping.epochs, config.second_stage) == (1, None)
    assert config.model.options["dropout"] == 0.2
    assert config.model.options["encoder"] == "resnet18"


def test_one_of_several_processes_tells(finished, ultrasound, capsys, monkeypatch):
    arguments = ["train", str(finished[0] / "config.yaml"), "--data", str(ultrasound), "--out", str(finished[0])]
    for rank in (1, 0):
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        assert main([*arguments, "--resume"]) == 0
        assert ("combined" in capsys.readouterr().out) == (rank == 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "there is no configuration 'nonsense'; there are: btinet"),
        (["demo", "--set", "x"], "--set x: expected NAME=VALUE"),
        (["demo", "--set", "data.size=["], "--set data.size=[: the value is not valid YAML"),
        (["demo", "--set", "data.sise=3"], "data.sise: there is no such setting (did you mean 'size'?)"),
        (["demo", "--set", "seed=1", "--set", "seed.x=2"], "--set seed.x=2: seed has a value by another --set"),
        (
            ["demo", "--set", "seed.x=2", "--set", "seed=1"],
            "--set seed=1: seed has settings of its own by another --set",
        ),
        (["demo", "--set", "seed=100000000000000"], "seed: expected at most 4294967295, got 100000000000000"),
        (["demo", "--repeats", "0"], "--repeats: expected at least 1, got 0"),
        (["demo", "--devices", "0"], "--devices: expected at least 1, got 0"),
        (["demo"], "nowhere: there is no such folder"),
    ],
)
def test_command_with_bad_input(tmp_path, capsys, arguments, words):
    name, *rest = arguments
    paths = ["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "run")]
    assert main(["train", name, *paths, *rest]) == 2
    text = capsys.readouterr().err
    assert words in text
    assert text.count("\n") == 1


def test_schema_is_printed(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--schema"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out) == recipe_schema()


def test_changes_by_name():
    assert parse_changes(["a.b.c=1", "a.b.d=[x, 2.5]", "e=null"]) == {"a": {"b": {"c": 1, "d": ["x", 2.5]}}, "e": None}


def test_networks_are_laid_out_for_a_cpu():
    torch.manual_seed(0)
    plain, laid = (create_model("mbdi", encoder="tf_efficientnet_b0", decoder_dims=(32, 24, 16, 16)) for _ in range(2))
    laid.load_state_dict(plain.state_dict())
    lay_out(laid)
    assert_same(laid.state_dict(), plain.state_dict())
    kinds = {type(layer).__name__ for layer in laid.modules()}
    assert "SharedDepthwise" in kinds
    assert laid.encoder.conv_stem.weight.is_contiguous(memory_format=torch.channels_last)
    images, found = torch.randn(2, 3, 64, 64), []
    for model in (plain.eval(), laid.eval()):
        logits = model(images).seg_logits
        logits.square().mean().backward()
        found.append([logits.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for got, exact in zip(*found, strict=True):
        assert (got - exact).norm() <= 1e-3 * exact.norm() + 1e-7
    lay_back(laid)
    assert torch.equal(laid(images).seg_logits, plain(images).seg_logits)
