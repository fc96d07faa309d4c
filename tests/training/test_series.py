"""Several runs of one recipe: seeds and folds, shared files, messages, and rejected input."""

import json
import math

import pytest

from mtlkit.cli import main
from mtlkit.data import DataError
from mtlkit.training import cross_validate, repeat, series


def test_repeats(tmp_path, ultrasound, small):
    config = small.change({"stopping": {"epochs": 1}})
    summary = repeat(config, ultrasound, tmp_path / "runs", 2, progress=False)
    runs = [json.loads((tmp_path / f"runs/seed-{seed}/result.json").read_text()) for seed in (42, 43)]
    values = [run["val/loss"] for run in runs]
    assert summary["val/loss"]["mean"] == pytest.approx(sum(values) / 2)
    assert summary["val/loss"]["sd"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    splits = [(tmp_path / f"runs/seed-{seed}/split.json").read_text() for seed in (42, 43)]
    assert splits[0] == splits[1]
    assert (tmp_path / "runs/summary.json").is_file()


@pytest.fixture(scope="module")
def folds(tmp_path_factory, ultrasound, small):
    """The folder of a three-fold cross-validation, the recipe, and the summary."""
    out = tmp_path_factory.mktemp("folds") / "runs"
    config = small.change({"stopping": {"epochs": 1}})
    return out, config, cross_validate(config, ultrasound, out, 3, progress=False)


def test_folds(folds):
    out, _, summary = folds
    splits = [json.loads((out / f"fold-{k}/split.json").read_text()) for k in (1, 2, 3)]
    tested = [key for split in splits for key in split["test"]]
    assert len(tested) == len(set(tested)) == sum(len(splits[0][part]) for part in ("train", "val", "test"))
    values = [json.loads((out / f"fold-{k}/result.json").read_text())["test/accuracy"] for k in (1, 2, 3)]
    assert summary["test/accuracy"]["mean"] == pytest.approx(sum(values) / 3)
    assert json.loads((out / "summary.json").read_text())["test/accuracy"] == summary["test/accuracy"]


def test_one_fold_alone_is_the_same_run(folds, tmp_path, ultrasound):
    out, config, _ = folds
    cross_validate(config, ultrasound, tmp_path / "alone", 3, fold=2, progress=False)
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["fold-2"]
    for name in ("split.json", "result.json", "stage1/metrics.csv"):
        assert (tmp_path / "alone/fold-2" / name).read_text() == (out / "fold-2" / name).read_text()


def test_folds_are_resumed_where_they_were(folds, tmp_path, ultrasound, monkeypatch):
    """The second fold is interrupted; the first remains unchanged."""
    _, config, summary = folds
    real, seen = series.train, []

    def killed(config, data, out, **options):
        seen.append(out.name)
        if out.name == "fold-2":
            raise KeyboardInterrupt
        return real(config, data, out, **options)

    monkeypatch.setattr(series, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(config, ultrasound, tmp_path / "runs", 3, progress=False)
    monkeypatch.setattr(series, "train", real)
    before = (tmp_path / "runs/fold-1/result.json").stat().st_mtime_ns
    again = cross_validate(config, ultrasound, tmp_path / "runs", 3, progress=False, resume=True)
    assert again["val/loss"] == summary["val/loss"]
    assert seen == ["fold-1", "fold-2"]
    assert (tmp_path / "runs/fold-1/result.json").stat().st_mtime_ns == before


def test_folds_need_enough_patients(tmp_path, ultrasound, small):
    with pytest.raises(DataError, match="at least 40 groups"):
        cross_validate(small, ultrasound, tmp_path / "runs", 40, progress=False)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match="split: expected none"):
        cross_validate(small, ultrasound, tmp_path / "runs", 3, split=tmp_path / "split.json")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--folds", "1"], "--folds: expected at least 2, got 1"),
        (["--folds", "3", "--fold", "4"], "--fold: expected 1 to 3, got 4"),
        (["--fold", "1"], "--fold: expected --folds as well, got 1"),
        (["--folds", "3", "--split", "a.json"], "--split: expected none with --folds"),
    ],
)
def test_the_command_refuses(tmp_path, ultrasound, capsys, options, words):
    assert main(["train", "demo", "--data", str(ultrasound), "--out", str(tmp_path / "runs"), *options]) == 2
    assert words in capsys.readouterr().err
