import importlib
import re
import shutil
from pathlib import Path

import pytest

import mtlkit
from mtlkit import _native, cli, info

# A package whose import fails as if it were missing, placed before the real one.
MISSING = "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)\n"


def rows(output: str, section: str) -> dict[str, str]:
    """The rows of a section of the report, by their first word."""
    body = output.partition(f"{section}\n")[2].partition("\n\n")[0]
    return {line.split()[0]: line.strip() for line in body.splitlines() if re.match(r"  \S", line)}


@pytest.fixture
def package(tmp_path) -> Path:
    """A copy of the installed package, without the compiled module, that a test may modify."""
    source = Path(mtlkit.__file__).parent
    shutil.copytree(source, tmp_path / "mtlkit", ignore=shutil.ignore_patterns("_C.*", "__pycache__"))
    return tmp_path / "mtlkit"


def hide(folder: Path, name: str) -> Path:
    """A folder that, placed first on the import path, hides package `name`."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(MISSING)
    return folder


@pytest.mark.parametrize("command", [["-m", "mtlkit.info"], ["-c", "from mtlkit.cli import main; main(['info'])"]])
def test_report_names_every_backend(run_python, command):
    process = run_python(*command)
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert tuple(rows(process.stdout, "Backends")) == info.BACKENDS
    assert " active " in rows(process.stdout, "Backends")["reference"]
    assert " active " in rows(process.stdout, "Backends")["torch"]
    assert (" active " in rows(process.stdout, "Backends")["cpu"]) == (_native.C is not None)


def test_without_torch(run_python, tmp_path):
    process = run_python("-m", "mtlkit.info", path=[hide(tmp_path, "torch")])
    assert process.returncode == 0, process.stderr
    assert all("needs torch" in row for row in rows(process.stdout, "Backends").values())
    assert "No module named 'torch'" in rows(process.stdout, "Versions")["torch"]
    assert "to fix: pip install torch" in process.stdout


def test_without_triton(run_python, tmp_path):
    process = run_python("-m", "mtlkit.info", path=[hide(tmp_path, "triton")])
    assert process.returncode == 0, process.stderr
    assert " active " not in rows(process.stdout, "Backends")["triton"]


def test_without_compiled_module(run_python, package):
    process = run_python("-m", "mtlkit.info", copy=package.parent)
    assert process.returncode == 0, process.stderr
    assert "not built" in rows(process.stdout, "Compiled module mtlkit._C")["state"]
    assert " active " in rows(process.stdout, "Backends")["torch"]
    assert " active " not in rows(process.stdout, "Backends")["cpu"]


@pytest.mark.skipif(_native.C is None, reason="mtlkit._C is not built")
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5])
def test_with_truncated_compiled_module(run_python, package, kept):
    whole = Path(_native.C.__file__)
    data = whole.read_bytes()
    (package / whole.name).write_bytes(data[: int(kept * len(data))])
    process = run_python("-m", "mtlkit.info", copy=package.parent)
    assert process.returncode == 0, process.stderr
    assert re.search("does not load|crashes Python", rows(process.stdout, "Compiled module mtlkit._C")["state"])
    assert " active " not in rows(process.stdout, "Backends")["cpu"]


def test_with_compiled_module_that_crashes(run_python, package):
    (package / "_C.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    process = run_python("-m", "mtlkit.info", copy=package.parent)
    assert process.returncode == 0, process.stderr
    assert "crashes Python at load (SIGSEGV)" in rows(process.stdout, "Compiled module mtlkit._C")["state"]
    assert " active " in rows(process.stdout, "Backends")["torch"]


def test_variables_are_shown(run_python):
    process = run_python("-m", "mtlkit.info", MTLKIT_CUDA="off", MTLKIT_TYPO="1")
    shown = rows(process.stdout, "Variables set")
    assert shown["MTLKIT_CUDA"].endswith("off")
    assert "unknown to mtlkit" in shown["MTLKIT_TYPO"]


def test_readme_has_the_variables(root):
    readme = (root / "README.md").read_text()
    assert tuple(sorted(re.findall(r"^\| `(MTLKIT_\w+)`", readme, flags=re.MULTILINE))) == info.SETTINGS


@pytest.mark.parametrize(
    "name",
    ["ss2d", "selective_scan", "causal_conv1d", "dwconv_silu", "norm_gate", "ss2d_norm_gate", "task_interaction"],
)
def test_readme_tells_which_operators_have_kernels(root, name):
    operator = importlib.import_module(f"mtlkit.operators.{name.removeprefix('task_')}")
    served = operator.SERVED if name == "task_interaction" else operator.OPERATOR.served
    (row,) = re.findall(rf"^\| `ops\.{name}` \| (.*) \| (.*) \|$", (root / "README.md").read_text(), flags=re.MULTILINE)
    assert [not cell.startswith("none yet") for cell in row] == [
        "cpu" in served,
        bool({"triton", "cuda"} & set(served)),
    ]


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_command_line(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 0
    assert "mtlkit" in capsys.readouterr().out
