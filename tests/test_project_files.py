"""The project's files: versions, workflows, templates, the container, and values repeated from pyproject.toml."""

import re
from pathlib import Path

import pytest
import yaml

import mtlkit

ROOT = Path(__file__).resolve().parents[1]
YAML = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / ".github").rglob("*.yml"))
PAPERS = ("2603.01295", "2606.29102", "2605.25518", "2507.16955")

pytestmark = pytest.mark.skipif(not YAML, reason="not a git checkout")


def workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())


def test_the_citation_has_the_version_and_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mtlkit.__version__
    assert [re.findall(r"\d{4}\.\d{5}$", paper["url"]) for paper in citation["references"]] == [[key] for key in PAPERS]
    assert all(hasattr(mtlkit.models, paper["notes"].rpartition(".")[2]) for paper in citation["references"])


def test_the_citation_has_the_authors_and_titles_of_the_model_cards():
    entries = (ROOT / "mtlkit/models/citations.bib").read_text().split("\n\n")
    by_key = {re.findall(r"eprint = {(.+)}", entry)[0]: entry for entry in entries}
    for paper in yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]:
        entry = by_key[paper["url"].rpartition("/")[2]]
        names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
        assert re.findall(r"author = {(.+)}", entry) == [" and ".join(names)]
        (title,) = re.findall(r"title = {(.+)}", entry)
        assert paper["title"] == re.sub(r"[{}]", "", title)


@pytest.mark.parametrize("name", YAML)
def test_yaml_is_read(name):
    assert isinstance(yaml.safe_load((ROOT / name).read_text()), dict)


@pytest.mark.parametrize("name", ["tests", "release"])
def test_scripts_that_workflows_run_are_there(name):
    steps = [step for job in workflow(name)["jobs"].values() for step in job["steps"]]
    scripts = {word for step in steps for word in re.findall(r"(?:tools|\.ci)/[\w.]+", step.get("run", ""))}
    assert scripts
    assert all((ROOT / script).is_file() for script in scripts)


def test_supported_pythons_are_tested_and_built():
    text = (ROOT / "pyproject.toml").read_text()
    (oldest,) = re.findall(r'requires-python = ">=(3\.\d+)"', text)
    (torch,) = re.findall(r'dependencies = \["torch>=([\d.]+)"', text)
    runs = workflow("tests")["jobs"]["released"]["strategy"]["matrix"]["include"]
    assert len({run["python"] for run in runs}) == 3
    assert {run["torch"] for run in runs} == {"torch", f"torch=={torch}.*"}
    assert oldest in {run["python"] for run in runs}
    built = re.findall(r'"cp3(\d+)-\*"', text)
    assert {run["python"] for run in runs} <= {f"3.{minor}" for minor in built}


def test_the_container_installs_what_predicting_needs():
    """In the stage without PyTorch, pip cannot get the packages from mtlkit's own list."""
    (extra,) = re.findall(r"\npredict = \[(.*)\]", (ROOT / "pyproject.toml").read_text())
    (numpy,) = re.findall(r'"(numpy>=[\d.]+)"', (ROOT / "pyproject.toml").read_text())
    stage = (ROOT / "Dockerfile").read_text().rpartition("FROM base AS onnx")[2]
    assert set(re.findall(r'"([^"]+)"', stage)) == {numpy, *re.findall(r'"([^"]+)"', extra)}


def test_templates_ask_for_the_report():
    for name in ("ISSUE_TEMPLATE/bug.yml", "pull_request_template.md"):
        assert "mtlkit doctor" in (ROOT / ".github" / name).read_text(), name
