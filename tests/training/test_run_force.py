"""A run that replaces another keeps the user's files."""

import shutil

import pytest

from mtlkit.errors import OccupiedError
from mtlkit.training import load_config, repeat, train


def test_force_loses_nothing_of_the_users(tmp_path, monkeypatch, ultrasound, small):
    """Notes, metrics, an evaluation and a data set in the folder of a run."""
    config = small.change({"stopping": {"epochs": 1}})
    out = tmp_path / "run"
    train(config, ultrasound, out, progress=False)
    mine = {"notes.md": "mine", "stage1/curve.png": "mine", "evaluation/metrics.json": "mine"}
    for name, text in mine.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text)
    data = shutil.copytree(ultrasound, out / "busi")
    images = sorted(path.name for path in data.rglob("*.png"))

    def kept() -> bool:
        texts = {name: (out / name).read_text() for name in mine}
        return texts == mine and sorted(path.name for path in data.rglob("*.png")) == images

    recipe = out / "mine.yaml"
    config.save(recipe)
    shutil.copy(out / "split.json", out / "mine.json")
    for arguments in ((config, data), (str(recipe), ultrasound)):
        with pytest.raises(OccupiedError, match=r"cannot be replaced, as .* lies in it; name another folder"):
            train(*arguments, out, force=True, progress=False)
    with pytest.raises(OccupiedError, match=r"mine.json, which is read, lies in it"):
        train(config, ultrasound, out, split=out / "mine.json", force=True, progress=False)
    with monkeypatch.context() as patch:
        patch.chdir(out)
        with pytest.raises(OccupiedError, match="cannot be replaced from within"):
            train(config, ultrasound, ".", force=True, progress=False)
    assert kept()
    before = (out / "result.json").stat().st_ino
    train(config.change({"seed": 1}), ultrasound, out, force=True, progress=False)
    assert kept()
    assert (out / "result.json").stat().st_ino != before
    assert load_config(out / "config.yaml").seed == 1
    train(config.change({"seed": 1}), data, out, resume=True, progress=False)  # reading data inside the folder is safe


def test_a_table_of_the_users_is_not_taken_for_a_summary(tmp_path, ultrasound, small):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/summary.json").write_text("mine")
    with pytest.raises(OccupiedError, match="no list says that mtlkit wrote what is in it"):
        repeat(small, ultrasound, tmp_path / "runs", 1, force=True, progress=False)
    assert (tmp_path / "runs/summary.json").read_text() == "mine"


def test_resume_and_force_exclude_each_other(tmp_path, ultrasound, small):
    with pytest.raises(ValueError, match="resume, force: expected at most one of them, got both"):
        train(small, ultrasound, tmp_path / "run", resume=True, force=True)
    assert not (tmp_path / "run").exists()
