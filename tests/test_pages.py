"""The code on pages can be pasted: Python runs from the top of a page to its end, commands are valid."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

import mtlkit
from mtlkit import compat
from mtlkit.cli import parser, spelt_out

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]
EXPORTS = {"docs/deploy.md"}  # takes a minute
A_RUN = '"demo.onnx"'  # needs a trained run: tests/inference covers these calls


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands(name: str) -> list[str]:
    lines = [line for block in blocks(name, "(?:bash)?") for line in block.splitlines()]
    return [line.removeprefix("light/bin/") for line in lines if line.startswith(("mtlkit ", "light/bin/mtlkit "))]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in EXPORTS)) for name in PAGES if blocks(name, "python")],
)
def test_python_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if name in EXPORTS:
        shutil.copy(mtlkit.deploy.library_path(), tmp_path)  # as in a command of the page
    names = {"__name__": "pasted"}
    try:
        for block in blocks(name, "python"):
            if A_RUN not in block:
                exec(compile(block, name, "exec"), names)
    finally:
        compat.uninstall()


@pytest.mark.parametrize("name", [name for name in PAGES if commands(name)])
def test_commands_are_understood(name):
    for command in commands(name):
        parser().parse_args(spelt_out(shlex.split(command, comments=True)[1:]))
