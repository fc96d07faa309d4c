"""Names of folders, classes, rows and files cannot control the terminal, whichever command prints them."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mtlkit.evaluation
import mtlkit.training
from mtlkit.cli import main
from mtlkit.training import load_ablation

NAME = "[red]\x1b]0;t\x07\u202e\nx\r:warning:"
SHOWN = r"[red]\x1b]0;t\x07\u202e\nx\r:warning:"


@pytest.fixture
def shown(capfd) -> Callable[..., str]:
    """The output of a command on one line: shown(status, *arguments)."""

    def run(status: int, *arguments: object) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert main([str(argument) for argument in arguments]) == status
        words = "".join(capfd.readouterr())
        assert words.replace("\n", "").isprintable()
        return "".join(line.strip() for line in words.splitlines())

    return run


@pytest.fixture
def own(tmp_path) -> Path:
    """Two images of a class with a hostile name, one of them broken."""
    root = tmp_path / NAME
    for part in ("images", "masks"):
        (root / part / NAME).mkdir(parents=True)
        for i in range(2):
            pixels = np.eye(40, dtype=np.uint8) * 255
            Image.fromarray(pixels).save(root / part / NAME / f"{NAME}{i}.png")
    (root / "images" / NAME / f"{NAME}1.png").write_bytes(b"broken")
    (root / "groups.csv").write_text(f'image,group\n"{NAME}/{NAME}0","{NAME}"\n"{NAME}/{NAME}1",=1\n', newline="")
    return root


def test_data_check(own, tmp_path, shown):
    words = shown(1, "data", "check", own, "--json", tmp_path / "report.json", "--all")
    assert f"{SHOWN}: layout folder, 1 images in 1 groups" in words
    assert f"{SHOWN}1.png: cannot be read as an image" in words
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["classes"] == {NAME: 1}
    assert SHOWN in shown(2, "data", "check", own, "--json", tmp_path / NAME / "images")


def test_synthesize(tmp_path, shown):
    out = tmp_path / NAME
    assert f"{SHOWN}: 3 cases" in shown(0, "data", "synthesize", "ultrasound", out, "--cases", 3, "--size", 64)
    assert f"{SHOWN}: exists already" in shown(2, "data", "synthesize", "ultrasound", out, "--cases", 3)
    shutil.rmtree(out)


@pytest.mark.parametrize("repeats", [(), ("--repeats", 1)])
def test_train(tmp_path, shown, monkeypatch, repeats):
    monkeypatch.setattr(mtlkit.training, "train", lambda *_, **__: {"val/iou": 0.5, "test/iou": 0.25})
    monkeypatch.setattr(mtlkit.training, "repeat", lambda *_, **__: {"val/iou": {"mean": 0.5, "sd": 0.1}})
    assert SHOWN in shown(0, "train", "demo", "--data", tmp_path, "--out", tmp_path / NAME, *repeats)


def test_ablate(tmp_path, shown, monkeypatch):
    table = tmp_path / f"{NAME}.yaml"
    rows = [{"name": f"{NAME}{i}", "changes": {"seed": i}} for i in range(2)]
    table.write_text(json.dumps({"name": NAME, "recipe": "demo", "rows": rows}))

    def ablate(found, data, out, *, on_row, **_):
        for number, row in enumerate(found.rows):
            on_row(number, row)
        return {row.name: {"test/iou": {"mean": 0.5, "sd": 0.1}} for row in found.rows}

    monkeypatch.setattr(mtlkit.training, "ablate", ablate)
    words = shown(0, "ablate", table, "--data", tmp_path, "--out", tmp_path / NAME)
    assert words.count(f"{SHOWN}0") == 2
    assert load_ablation(table).rows[0].name == f"{NAME}0"


@pytest.mark.parametrize("several", [False, True])
def test_evaluate(tmp_path, shown, monkeypatch, several):
    figures = {"iou": {"mean": 0.5, "sd": 0.1, "runs": {NAME: 0.5}} if several else {"value": 0.5, "low": 0, "high": 1}}
    metrics = {"model": "unet", "part": "test", "data": NAME, "runs": [NAME], "figures": figures}
    metrics |= {"remarks": [NAME], "cost": {}}
    for name in ("evaluate", "evaluate_repeats"):
        monkeypatch.setattr(mtlkit.evaluation, name, lambda *_, **__: metrics)
    run = tmp_path / NAME
    (run / NAME).mkdir(parents=True)
    (run / (NAME if several else "") / ".mtlkit-run").touch()
    assert shown(0, "evaluate", run, "--out", tmp_path / f"{NAME}2").count(SHOWN) >= 3


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "check", NAME],
        ["train", "demo", "--data", NAME, "--out", NAME],
        ["train", f"{NAME}.yaml", "--data", "x", "--out", "y"],
        ["ablate", NAME, "--data", "x", "--out", "y"],
        ["evaluate", NAME, "--out", "x"],
        ["predict", NAME, NAME, "--out", "x"],
    ],
)
def test_what_is_not_there(tmp_path, monkeypatch, shown, arguments):
    monkeypatch.chdir(tmp_path)
    assert "warning:" in shown(2, *arguments)
    assert not list(tmp_path.iterdir())


def test_usage(capfd):
    with pytest.raises(SystemExit):
        main(["data", "check", "x", f"--{NAME}"])
    assert capfd.readouterr().err.replace("\n", "").isprintable()
