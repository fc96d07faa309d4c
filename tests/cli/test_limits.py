"""--max-pixels reaches every reader of images, and the library's error about its limit names this option."""

import json
from pathlib import Path

import pytest

from mtlkit.cli import main
from mtlkit.training import load_run

SMALL = ["--set", "data.size=32", "--set", "data.batch_size=4", "--set", "data.workers=0", "--set", "data.cache=false"]
SMALL += ["--set", "stopping.epochs=1", "--set", "second_stage=null", "--set", "model.options.hmsf=false"]


@pytest.fixture(scope="module")
def trained(draw_phantoms, tmp_path_factory) -> Path:
    """A run trained on images of up to 86 x 64 pixels."""
    out = tmp_path_factory.mktemp("limits") / "run"
    data = str(draw_phantoms("ultrasound", 24))
    assert main(["train", "demo", "--data", data, "--out", str(out), *SMALL, "--max-pixels", "6400"]) == 0
    return out


def refused(capsys, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    words = capsys.readouterr().err.splitlines()[-1]
    assert words.endswith("; --max-pixels raises the limit")
    assert "expected at most 4,095 pixels a frame (max_pixels), got " in words
    return words


def test_train(draw_phantoms, tmp_path, trained, capsys):
    assert load_run(trained).config.data.max_pixels == 6400
    data, out = draw_phantoms("ultrasound", 24), tmp_path / "run"
    refused(capsys, "train", "demo", "--data", data, "--out", out, *SMALL, "--max-pixels", 4095)
    assert main(["train", "demo", "--data", str(data), "--out", str(out), "--max-pixels", "4095", "--skip-bad"]) == 2
    assert "contains no usable image" in capsys.readouterr().err


def test_evaluate(tmp_path, trained, capsys):
    refused(capsys, "evaluate", trained, "--out", tmp_path / "out", "--samples", 0, "--max-pixels", 4095)
    arguments = ["evaluate", str(trained), "--out", str(tmp_path / "out"), "--samples", "0"]
    assert main([*arguments, "--examples", "1"]) == 0


def test_predict(draw_phantoms, tmp_path, trained, capsys):
    image = next((draw_phantoms("ultrasound", 24) / "benign").glob("*).png"))
    refused(capsys, "predict", trained, image, "--out", tmp_path / "out", "--max-pixels", 4095)
    assert main(["predict", str(trained), str(image), "--out", str(tmp_path / "out"), "--max-pixels", "6400"]) == 0


def test_check(draw_phantoms, tmp_path):
    data, report = str(draw_phantoms("ultrasound", 24)), tmp_path / "report.json"
    assert main(["data", "check", data, "--max-pixels", "4095", "--json", str(report)]) == 1
    assert {finding["kind"] for finding in json.loads(report.read_text())["findings"]} == {"too large"}
    assert main(["data", "check", data, "--max-pixels", "6400"]) == 0


@pytest.mark.parametrize("text", ["0", "-1", "1e8", "x" * 1000, "9" * 5000, "²"])
def test_a_limit_that_is_none(text, capsys):
    with pytest.raises(SystemExit) as status:
        main(["data", "check", "busi", "--max-pixels", text])
    assert status.value.code == 2
    words = capsys.readouterr().err.splitlines()[-1]
    assert "argument --max-pixels: expected a number of at least 1, got '" in words
    assert len(words) < 200
