"""Loggers: their own readers can read what they wrote, and mtlkit does not own their files."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtlkit.cli import main
from mtlkit.training import repeat, train


@pytest.fixture(scope="module")
def short(small):
    return small.change({"stopping": {"epochs": 2}})


def told(run: Path, stage: str = "stage1") -> dict[int, float]:
    with (run / stage / "metrics.csv").open() as file:
        return {int(row["epoch"]): float(row["val/loss"]) for row in csv.DictReader(file)}


def test_tensorboard(tmp_path, ultrasound, short):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(short, ultrasound, tmp_path / "run", logger="tensorboard", progress=False)
    (folder,) = (tmp_path / "run/logs/tensorboard/stage1").glob("version_*")
    events = EventAccumulator(str(folder))
    events.Reload()
    values = [event.value for event in events.Scalars("val/loss")]
    assert values == pytest.approx(list(told(tmp_path / "run").values()))


def test_mlflow(tmp_path, ultrasound, short, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train(short, ultrasound, tmp_path / "run", logger="mlflow", progress=False)
    client = MlflowClient(f"sqlite:///{tmp_path / 'run/logs/mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("mtlkit").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run stage1", "FINISHED")
    values = [entry.value for entry in client.get_metric_history(run.info.run_id, "val/loss")]
    assert values == pytest.approx(list(told(tmp_path / "run").values()))


def records_of_wandb(path: Path) -> Iterator[Any]:
    """The contents of a transaction log: a header of 7 bytes, then parts of records in blocks like LevelDB's logs."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a complete record, or its last part
            yield Record.FromString(parts)
            parts = b""


def test_wandb_offline(tmp_path, ultrasound, two_stages, monkeypatch):
    pytest.importorskip("wandb", reason="Weights & Biases is not installed: pip install 'mtlkit[loggers]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    short = two_stages.change({"stopping": {"epochs": 1}, "second_stage": {"stopping": {"epochs": 1}}})
    train(short, ultrasound, tmp_path / "run", logger="wandb", progress=False)
    names = set()
    for log in (tmp_path / "run/logs/wandb").glob("offline-run-*/*.wandb"):
        records = list(records_of_wandb(log))
        name = next(record.run.display_name for record in records if record.HasField("run"))
        rows = [{item.key or item.nested_key[0]: item.value_json for item in r.history.item} for r in records]
        values = [float(row["val/loss"]) for row in rows if "val/loss" in row]
        assert values == pytest.approx(list(told(tmp_path / "run", name.removeprefix("run ")).values()))
        assert [record.exit.exit_code for record in records if record.HasField("exit")] == [0]
        names.add(name)
    assert names == {"run stage1", "run stage2"}


def test_logs_stay_where_a_run_is_replaced_and_change_nothing(tmp_path, ultrasound, short):
    train(short, ultrasound, tmp_path / "plain", progress=False)
    for _ in range(2):
        train(short, ultrasound, tmp_path / "run", logger="csv", force=(tmp_path / "run").exists(), progress=False)
    logs = sorted((tmp_path / "run/logs/csv/stage1").iterdir())
    assert [path.name for path in logs] == ["version_0", "version_1"]
    assert not (tmp_path / "run/.mtlkit-new").exists()
    for name in ("result.json", "stage1/metrics.csv"):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "plain" / name).read_text()


def test_logs_of_a_series_are_in_its_runs(tmp_path, ultrasound, short):
    config = short.change({"stopping": {"epochs": 1}})
    for force in (False, True):
        repeat(config, ultrasound, tmp_path / "runs", 1, logger="csv", force=force, progress=False)
    assert len(list((tmp_path / "runs/seed-42/logs/csv/stage1").iterdir())) == 2
    assert not (tmp_path / "runs/.mtlkit-new").exists()


def test_an_unknown_logger_and_one_that_is_not_installed(tmp_path, ultrasound, monkeypatch, capsys):
    command = ["train", "demo", "--data", str(ultrasound), "--out", str(tmp_path / "run")]
    assert main([*command, "--logger", "comet"]) == 2
    assert "logger: expected one of csv, tensorboard, mlflow, wandb, got 'comet'" in capsys.readouterr().err
    monkeypatch.setattr("mtlkit._extras.find_spec", lambda name: None if name == "wandb" else object())
    assert main([*command, "--logger", "wandb"]) == 2
    assert (
        "the logger wandb needs wandb, which is not installed: pip install 'mtlkit[loggers]'" in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_arguments_of_the_trainer_reach_it(tmp_path, ultrasound, short, capsys):
    short.save(tmp_path / "short.yaml")
    command = ["train", str(tmp_path / "short.yaml"), "--data", str(ultrasound), "--out", str(tmp_path / "run")]
    assert main([*command, "--trainer", "max_epochs=1", "--trainer", "limit_train_batches=1"]) == 0
    assert json.loads((tmp_path / "run/stage1/done.json").read_text()) == {"epochs": 1}
    shutil.rmtree(tmp_path / "run")
    assert main([*command, "--trainer", "max_epoch=1"]) == 2
    assert "max_epoch" in capsys.readouterr().err
