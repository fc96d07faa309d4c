"""The commands of docs/tutorial.md: each is valid, reads what an earlier one writes, and all of them run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from mtlkit.cli import main, parser

# Arguments that make a command small, by its first words. The rest of the command is the page's.
TINY = {"encoder": "resnet18", "decoder_dims": "[16,16,12,8]", "clf_dim": "16"}
SMALL = ["--set", "data.size=32", "--set", "stopping.epochs=1"]
SMALL += [word for name, value in TINY.items() for word in ("--set", f"model.options.{name}={value}")]
SMALLER = {
    "data synthesize": ["--cases", "48", "--size", "64"],
    "train": SMALL,
    "evaluate": ["--samples", "20", "--examples", "1"],
    "compare": ["--samples", "20", "--examples", "1"],
}
REPLACED = {"--folds 5": "--folds 2"}


@pytest.fixture(scope="module")
def commands(root) -> list[str]:
    page = (root / "docs" / "tutorial.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) > 10
    return lines


def is_ours(command: str) -> bool:
    return command.startswith("mtlkit ")


def made_small(command: str) -> str:
    for old, new in REPLACED.items():
        command = command.replace(old, new)
    words = next((words for name, words in SMALLER.items() if command.startswith(f"mtlkit {name} ")), [])
    return f"{command} {shlex.join(words)}".strip()


def test_every_command_is_understood(commands):
    """Its options exist, and an earlier command wrote each path that it reads."""
    written = set()
    for command in filter(is_ours, commands):
        for line in (command, made_small(command)):
            options = parser().parse_args(shlex.split(line)[1:])
        paths = {path for value in vars(options).values() for path in (value if isinstance(value, list) else [value])}
        paths = {path for path in paths if isinstance(path, Path)}
        out = {getattr(options, name, None) for name in ("out", "thumbnails")} - {None}
        out |= {options.folder} if options.command == "data synthesize" else set()
        for path in paths - out - {Path("study/scan.dcm")}:
            assert any(path.is_relative_to(place) for place in written), f"{command}: {path}"
        assert not out & written
        written |= out
    assert any("study/scan.dcm" in command for command in commands if not is_ours(command))


def test_every_change_is_of_use(commands):
    for name in SMALLER:
        assert any(command.startswith(f"mtlkit {name} ") for command in commands)
    for old in REPLACED:
        assert any(old in command for command in commands)


@pytest.mark.slow
def test_every_command_runs(commands, tmp_path, monkeypatch, capsys):
    """With fewer and smaller images, for one epoch; checks the results that the page describes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    for command in commands:
        if is_ours(command):
            assert main(shlex.split(made_small(command))[1:]) == 0, f"{command}: {capsys.readouterr().err}"
        elif not command.startswith("pip install"):
            subprocess.run(["bash", "-c", command], check=True)
    study = tmp_path / "study"
    for name in ("demo/calibration.json", "demo/stage1/metrics.csv", "report/report.html", "report/images.csv"):
        assert (study / name).is_file()
    for name in ("alike.html", "comparison/comparison.md", "folds-report/report.html", "found/predictions.csv"):
        assert (study / name).is_file()
    assert "Calibration" in (study / "report" / "report.html").read_text()
    assert len(list((study / "found" / "dicom" / "seg").glob("*.dcm"))) == 1
    assert len(list((study / "found" / "dicom" / "sr").glob("*.dcm"))) == 1
    assert (study / "found" / "overlays").is_dir()
    assert (study / "found-onnx" / "predictions.csv").is_file()
    card = ModelCard.load(study / "card" / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}
