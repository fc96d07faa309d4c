"""Checkpoints contain only tensors and plain values; nothing in a run folder can execute code."""

import enum
import os
import pickle
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from mtlkit._output import resumable_folder
from mtlkit.errors import CheckpointError, DataError
from mtlkit.evaluation import evaluate
from mtlkit.inference import predict
from mtlkit.training import Ablation, AblationRow, ablate, load_run, train
from mtlkit.training.checkpoints import PARTS, RunCheckpoints, plain_state, read_checkpoint


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture
def mark(tmp_path) -> Path:
    return tmp_path / "planted code has run"


def plant(path: Path, mark: Path, *, archive: bool = False) -> None:
    """Replaces a file by a pickle that executes code, in torch's archive or by itself."""
    path.unlink()
    if archive:
        with path.open("wb") as file:  # torch rejects file names that begin with a dot
            torch.save({part: Planted(mark) for part in PARTS}, file)
    else:
        path.write_bytes(pickle.dumps(Planted(mark)))


def test_what_is_planted_would_run(tmp_path, mark):
    for archive in (False, True):
        (tmp_path / "file").touch()
        plant(tmp_path / "file", mark, archive=archive)
        torch.load(tmp_path / "file", weights_only=False) if archive else pickle.loads((tmp_path / "file").read_bytes())
        assert mark.exists()
        mark.unlink()


@pytest.fixture(scope="module")
def ended(tmp_path_factory, ultrasound, two_stages) -> Path:
    out = tmp_path_factory.mktemp("ended") / "run"
    train(two_stages, ultrasound, out, progress=False)
    return out


@pytest.fixture
def copy(ended, tmp_path) -> Path:
    return shutil.copytree(ended, tmp_path / "run", copy_function=os.link)


READ = [
    "config.yaml",
    "calibration.json",
    "data.json",
    "result.json",
    "split.json",
    "model/config.json",
    "model/model.safetensors",
]


@pytest.mark.parametrize("name", READ)
def test_a_run_that_has_ended(copy, mark, tmp_path, ultrasound, two_stages, name):
    plant(copy / name, mark)
    place = name.partition("/")[0]  # the error names the network's folder
    calls = [
        lambda: load_run(copy),
        lambda: evaluate(copy, None, tmp_path / "out"),
        lambda: predict(copy, ultrasound / "benign/benign (1).png", tmp_path / "out"),
    ]
    if name in ("config.yaml", "result.json"):
        calls.append(lambda: train(two_stages, ultrasound, copy, resume=True, progress=False))
    for call in calls:
        with pytest.raises((DataError, ValueError), match=place):
            call()
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_files_that_nothing_reads(copy, mark, tmp_path, ultrasound, monkeypatch):
    monkeypatch.setattr("mtlkit.evaluation.runner.draw_all", lambda *_, **__: {})
    for path in [path for path in copy.rglob("*") if path.is_file()]:
        if path.relative_to(copy).as_posix() not in READ and path.name not in ("metrics.csv", ".mtlkit-run"):
            plant(path, mark)
    evaluate(copy, None, tmp_path / "evaluation", samples=0)
    predict(copy, ultrasound / "benign/benign (1).png", tmp_path / "predictions")
    assert not mark.exists()


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize(
    "name",
    [".mtlkit-files", "config.yaml", "split.json", "stage1/best.ckpt", "stage2/last.ckpt", "stage2/best.ckpt"],
)
def test_a_run_that_was_interrupted(copy, mark, ultrasound, two_stages, name, archive):
    (copy / "result.json").unlink()
    if name == "stage2/last.ckpt":
        (copy / "stage2/done.json").unlink()
    plant(copy / name, mark, archive=archive)
    with pytest.raises((DataError, ValueError), match=name):
        train(two_stages, ultrasound, copy, resume=True, progress=False)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["stage1/metrics.csv", "stage1/done.json", "stage2/done.json"])
def test_files_that_resuming_only_writes(copy, mark, ultrasound, two_stages, name):
    (copy / "result.json").unlink()
    plant(copy / name, mark)
    train(two_stages, ultrasound, copy, resume=True, progress=False)
    assert not mark.exists()


def test_an_ablation(ended, mark, tmp_path, ultrasound, small):
    table = Ablation("one", (AblationRow("row", small.change({"stopping": {"epochs": 1}})),), ())
    ablate(table, ultrasound, tmp_path / "out", progress=False)
    run = tmp_path / "out/row/seed-42"
    (run / "result.json").unlink()
    (run / "stage1/done.json").unlink()
    plant(run / "stage1/last.ckpt", mark, archive=True)
    with pytest.raises(CheckpointError, match=r"stage1/last.ckpt: the checkpoint is damaged"):
        ablate(table, ultrasound, tmp_path / "out", resume=True, progress=False)
    assert not mark.exists()


# --- what is stored ---------------------------------------------------------------------------------------------------


class Mode(str, enum.Enum):
    MAX = "max"


def test_values_become_plain(tmp_path):
    state = dict.fromkeys(PARTS) | {
        "epoch": np.int64(3),
        "callbacks": {"a": {"best": np.float32(0.5), "path": Path("x"), "mode": Mode.MAX, "rows": [(1, None, True)]}},
        "state_dict": {"w": torch.nn.Parameter(torch.ones(2)), "n": np.arange(3)},
        "loops": {0: float("inf")},
    }
    torch.save(plain_state(state), tmp_path / "a.ckpt")
    found = read_checkpoint(tmp_path / "a.ckpt")
    assert found["epoch"] == 3
    assert found["callbacks"] == {"a": {"best": 0.5, "path": "x", "mode": "max", "rows": [(1, None, True)]}}
    assert type(found["callbacks"]["a"]["mode"]) is str
    assert torch.equal(found["state_dict"]["w"], torch.ones(2))
    assert torch.equal(found["state_dict"]["n"], torch.arange(3))
    assert found["loops"] == {0: float("inf")}


def test_what_could_not_be_read_is_not_written():
    with pytest.raises(TypeError, match=r"checkpoint\['callbacks'\]\['mine'\]: expected .* got Planted"):
        plain_state({"callbacks": {"mine": Planted(Path("x"))}})


def test_a_checkpoint_of_other_contents_is_damaged(tmp_path):
    for value in ([1], {"state_dict": {}}):
        torch.save(value, tmp_path / "a.ckpt")
        with pytest.raises(CheckpointError, match=r"a.ckpt: the checkpoint is damaged$"):
            read_checkpoint(tmp_path / "a.ckpt")


# --- full disks, and checkpoints of other things ----------------------------------------------------------------------


def test_a_full_disk_is_named_with_the_file(tmp_path):
    """torch reports neither the full disk nor the file; a file size limit simulates the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = dict.fromkeys(PARTS) | {"state_dict": {"weight": torch.zeros(2**18)}}
    with resumable_folder(tmp_path / "run", "a run") as place:
        checkpoints = RunCheckpoints(place)
        checkpoints.save_checkpoint(dict.fromkeys(PARTS), place.path / "last.ckpt")
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, before[1]))
        try:
            with pytest.raises(DataError, match=r"run/last.ckpt: cannot be written \(the file is incomplete\)$"):
                checkpoints.save_checkpoint(state, place.path / "last.ckpt")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert read_checkpoint(place.path / "last.ckpt") == dict.fromkeys(PARTS)  # the earlier checkpoint is kept
        with pytest.raises(DataError, match=r"run: expected at least \S+ MB of free disk for what is to be written"):
            place.check_room(10**18)
        place.check_room(1)


def test_a_run_that_was_moved_knows_its_best_epoch(tmp_path):
    folders = tmp_path / "old/stage1", tmp_path / "new/stage1"
    before, after = (ModelCheckpoint(folder, "best", monitor="val/iou", mode="max") for folder in folders)
    before.best_model_score, before.best_model_path = torch.tensor(0.5), f"{folders[0]}/best.ckpt"
    before.best_k_models = {f"{folders[0]}/best.ckpt": torch.tensor(0.5)}
    with resumable_folder(tmp_path / "old", "a run") as place:
        state = dict.fromkeys(PARTS) | {"callbacks": {"best": before.state_dict()}}
        RunCheckpoints(place).save_checkpoint(state, folders[0] / "last.ckpt")
    (tmp_path / "old").rename(tmp_path / "new")
    after.load_state_dict(RunCheckpoints(place).load_checkpoint(folders[1] / "last.ckpt")["callbacks"]["best"])
    assert after.best_model_score == 0.5
    assert after.best_model_path == f"{folders[1]}/best.ckpt"
    assert list(after.best_k_models) == [f"{folders[1]}/best.ckpt"]


@pytest.mark.parametrize(
    "change",
    [{"loops": {"fit_loop": 7}}, {"optimizer_states": [{"state": 3}]}, {"callbacks": []}, {"schedule": None}],
)
def test_a_checkpoint_of_something_else_is_named(copy, ultrasound, two_stages, change):
    for name in ("result.json", "stage1/done.json"):
        (copy / name).unlink()
    path = copy / "stage1/last.ckpt"
    state = read_checkpoint(path)
    path.unlink()
    torch.save(state | change, path)
    with pytest.raises(CheckpointError, match=rf"{path}: the checkpoint does not belong to this run$"):
        train(two_stages, ultrasound, copy, resume=True, progress=False)
