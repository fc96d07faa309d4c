"""tools/third_party.py: the rows and the table that it makes, for made-up projects."""

import importlib.util
import sys

import pytest

import mtlkit

LAYER = """
import torch
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import nn
import plain_medmamba

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = plain_medmamba.SS2D(6, 3)

    def forward(self, x):
        u = x.flatten(1, 2).mT
        ones = torch.ones(1, 3, u.shape[2])
        return self.layer(x) + selective_scan_fn(u, u, -torch.ones(6, 3), ones, ones).mT.view(x.shape)
"""
PROJECTS = """
import importlib, sys
from dataclasses import dataclass
import torch

@dataclass
class Project:
    folder: str
    network: str
    build: object
    packages: tuple = ()
    block: str = ""
    loop: bool = False

def good(root):
    sys.path.insert(0, str(root))
    return importlib.import_module("made_up").Net(), (torch.randn(1, 4, 4, 6),)

def bad(root):
    raise ImportError("no module | of that name\\nand more")

PROJECTS = {
    "good": Project("good", "one layer", good),
    "slow": Project("good", "one layer", good, loop=True),
    "bad": Project("good", "none", bad),
    "absent": Project("absent", "none", bad),
}
"""


@pytest.fixture
def tool(root, monkeypatch):
    """third_party.py as a module."""
    monkeypatch.syspath_prepend(str(root / "tools"))
    spec = importlib.util.spec_from_file_location("third_party", root / "tools" / "third_party.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clones(tmp_path):
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "made_up.py").write_text(LAYER)
    return tmp_path


def test_projects_in_processes_of_their_own(root, tmp_path, clones, run_python):
    """Runs a copy of the tool with a table of made-up projects."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "third_party.py").write_text((root / "tools" / "third_party.py").read_text())
    (folder / "third_party_projects.py").write_text(PROJECTS)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- third-party table: begin -->\nold\n<!-- third-party table: end -->\nafter\n")
    arguments = str(clones), "--out", str(page), "--threads", "1"
    process = run_python(str(folder / "third_party.py"), *arguments, path=[root / "examples"])
    assert process.returncode == 0, process.stderr
    good, slow, bad, absent, summary = process.stdout.splitlines()
    assert "| good |  | one layer | yes | 1 of 1 |" in good
    assert good.endswith("x | mtlkit's scan |")
    assert slow.endswith("x | token by token |")
    assert "no: import: ImportError: no module / of that name" in bad
    assert "no: there is no" in absent
    assert summary == "2 of 4 networks run, 2 with mtlkit's layer for every scan"
    text = page.read_text()
    assert text.startswith("before\n<!--")
    assert text.endswith("-->\nafter\n")
    assert good in text
    assert "old" not in text


def test_rows(tool):
    row = {"name": "x", "commit": "c", "network": "n", "replaced": 0, "left": 0, "served": 3, "runs": False}
    row |= {"difference": None, "seconds": {"inference": (None, 0.5)}, "before": "no: RuntimeError"}
    assert tool.line(row) == "| x | c | n | accelerated only | 3 served | – | 500 ms | – | mtlkit's block |"
    row |= {"replaced": 1, "difference": 2e-7, "seconds": {"inference": (1.0, 0.5)}}
    assert "| 1 of 1, 3 served | 2e-07 | 1000 → 500 ms, 2.0x | – | no: RuntimeError |" in tool.line(row)
    assert tool.speed((1.0, 0.25)) == "1000 → 250 ms, 4.0x"
    assert tool.speed((0.0012345, 1.5)) == "1.23 → 1500 ms, 0.0x"


def test_a_page_without_markers(tool, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match=r"page\.md: expected the markers <!-- third-party table: begin -->"):
        tool.write(page, [])


def test_unknown_projects(tool, tmp_path, capsys):
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path), "--projects", "nobody"])
    assert "expected some of MedMamba" in capsys.readouterr().err


def test_every_entry_has_a_folder_and_a_network(tool):
    projects = importlib.import_module("third_party_projects").PROJECTS
    assert len({project.folder for project in projects.values()}) >= 22
    assert all(project.network and callable(project.build) for project in projects.values())
    sys.modules.pop("third_party_projects")


def test_a_block_of_the_project_stands_where_mtlkit_s_would(tool, tmp_path):
    file = tmp_path / "mamba_simple.py"
    file.write_text("from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn\n\nclass Mamba:\n    pass\n")
    mtlkit.compat.install("mamba_ssm", replace=True)
    try:
        tool.use_block(file)
        served = importlib.import_module("mamba_ssm")
        block = importlib.import_module("mamba_ssm.modules.mamba_simple")
        assert served.Mamba is block.Mamba
        assert block.mamba_inner_fn is mtlkit.compat.mamba_inner_fn
    finally:
        mtlkit.compat.uninstall("mamba_ssm")
