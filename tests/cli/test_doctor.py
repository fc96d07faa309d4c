"""`mtlkit doctor`: its output for right and wrong kernels and for broken installations, its report and exit status."""

import json
import re
import shutil
from pathlib import Path

import pytest

import mtlkit.kernels
from mtlkit import _native
from mtlkit.cli import doctor, main
from mtlkit.cli._examining import Finding

native = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")
RIGHT = Finding("norm_gate", "cpu", "cpu avx2", "float32", "(2, 3)", "dx", 2e-6, 1e-5, 0.001)
WRONG = RIGHT._replace(backend="torch", error=2e-5, fault="dx: relative error 2.00e-05 is beyond 1.00e-05")


def figures(file: Path) -> dict:
    return json.loads(re.search(r"```json\n(.*)\n```", file.read_text())[1])


@pytest.fixture
def examined(monkeypatch):
    """The result of examining these outcomes, without any call."""

    def of(*findings: Finding) -> None:
        monkeypatch.setattr(
            "mtlkit.cli._examining.examine_apart", lambda *_: ((finding, len(findings)) for finding in findings)
        )

    return of


def test_right_and_wrong_calls(examined, capsys, tmp_path):
    examined(RIGHT, RIGHT)
    file = tmp_path / "a.md"
    assert main(["doctor", "--report", str(file)]) == 0
    output = capsys.readouterr().out
    assert re.search(r"norm_gate +cpu +cpu avx2 +0\.20 +- +- +- +2\.0\n", output)
    assert "All 2 calls are right" in output
    assert figures(file)["wrong"] == []
    examined(RIGHT, WRONG, WRONG)
    assert main(["doctor", "--report", str(file), "--force"]) == 1
    output = capsys.readouterr().out
    assert re.search(r"norm_gate +cpu +torch +2 of 2 WRONG", output)
    assert "WRONG: norm_gate, cpu, torch, float32, (2, 3): dx: relative error 2.00e-05" in output
    assert "2 of 3 calls are wrong" in output
    assert "Backends" in file.read_text()
    assert figures(file)["rows"][1] == ["norm_gate", "cpu", "torch", "float32", 2, 2, 2.0, 0.002]
    assert [row["fault"] for row in figures(file)["wrong"]] == [WRONG.fault] * 2


def test_the_report_has_a_name_of_its_own_and_no_home_folder(examined, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", lambda: Path(mtlkit.__file__).parents[1])
    examined(RIGHT)
    assert main(["doctor"]) == 0
    (file,) = tmp_path.iterdir()
    assert re.fullmatch(r"mtlkit-doctor-\d{8}-\d{6}\.md", file.name)
    assert f"to attach to an issue: {file.name}" in capsys.readouterr().out
    assert str(Path(mtlkit.__file__).parents[1]) not in file.read_text()


def test_what_is_refused_before_any_work(examined, capsys, tmp_path):
    examined(RIGHT)
    (tmp_path / "there.md").write_text("mine")
    assert main(["doctor", "--report", str(tmp_path / "there.md")]) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert main(["doctor", "--operator", "ss3d", "--report", str(tmp_path / "a.md")]) == 2
    assert "--operator ss3d: there is no such operator; there are: ss2d, " in capsys.readouterr().err
    assert (tmp_path / "there.md").read_text() == "mine"


def test_calls_that_could_not_all_be_made(capsys, tmp_path, monkeypatch):
    def some(*_):
        yield RIGHT, 5
        raise OSError("20 calls ended the process that made them, and no more were made")

    monkeypatch.setattr("mtlkit.cli._examining.examine_apart", some)
    assert main(["doctor", "--report", str(tmp_path / "a.md")]) == doctor.LEFT_OUT
    assert "Not all calls were made: 20 calls ended" in capsys.readouterr().out


def test_ctrl_c_leaves_a_report_of_what_was_found(capsys, tmp_path, monkeypatch):
    def some(*_):
        yield RIGHT, 5
        raise KeyboardInterrupt

    monkeypatch.setattr("mtlkit.cli._examining.examine_apart", some)
    assert main(["doctor", "--report", str(tmp_path / "a.md")]) == 130
    assert "Not all calls were made: interrupted" in capsys.readouterr().out
    assert "All 1 calls are right" in (tmp_path / "a.md").read_text()


def test_a_backend_alone(capsys, tmp_path, monkeypatch):
    """The backend is checked under the name given; one that supports nothing here is not a success."""
    asked = []
    monkeypatch.setattr("mtlkit.cli._examining.examine_apart", lambda *given: asked.append(given) or iter(()))
    line = ["doctor", "--operator", "norm_gate", "--quick", "--backend", "cuda", "--report", str(tmp_path / "a.md")]
    assert main(line) == doctor.LEFT_OUT
    assert asked == [(["norm_gate"], doctor.FEW, ["cuda"])]
    assert "Nothing was checked: no such backend serves a device here" in capsys.readouterr().out


def test_a_report_of_every_call_fits_into_an_issue():
    """An issue may have 65,536 characters of text."""
    from datetime import datetime

    rows = [RIGHT._replace(operator=f"an_operator_{i}") for i in range(200)]
    text = doctor.results(rows)
    assert len(doctor.report(datetime(2026, 1, 1), "x" * 2000, text, rows)) < 65_536


# --- in a separate process --------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path) -> Path:
    """A copy of the installed package, without the compiled module, that a test may modify."""
    folder = tmp_path / "copy" / "mtlkit"
    shutil.copytree(Path(mtlkit.__file__).parent, folder, ignore=shutil.ignore_patterns("_C.*", "__pycache__", "lib"))
    shutil.copytree(Path(mtlkit.kernels.__file__).parent, folder / "kernels")
    return folder


def replace(file: Path, function: str, code: str) -> None:
    """Replaces a function; the new code calls the original as `_right`."""
    text = file.read_text()
    assert text.count(f"def {function}(") == 1
    file.write_text(text.replace(f"def {function}(", "def _right(") + f"\n\ndef {function}{code}")


@native
def test_planted_faults(run_python, package, tmp_path):
    """A slightly wrong gradient, and a kernel that kills its process; later calls still run."""
    module = Path(_native.C.__file__)
    (package / module.name).symlink_to(module)
    replace(
        package / "operators" / "norm_gate" / "cpu.py",
        "backward",
        "(*given):\n    return [None if g is None else g * 1.01 for g in _right(*given)]\n",
    )
    replace(
        package / "operators" / "causal_conv1d" / "cpu.py",
        "forward",
        "(inputs, *given):\n"
        "    if inputs.x.dtype == torch.float64 and _native.C.cpu_isa() == 'baseline' and inputs.x.shape[2] == 48:\n"
        "        import os, signal\n        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    return _right(inputs, *given)\n",
    )
    file = tmp_path / "report.md"
    names = ["--operator", "norm_gate", "--operator", "causal_conv1d"]
    process = run_python("-m", "mtlkit", "doctor", "--quick", *names, "--report", file, copy=package.parent)
    assert process.returncode == 1, process.stderr
    assert re.search(r"norm_gate +cpu +cpu baseline +3 of 3 WRONG", process.stdout)
    assert "dx: relative error 1.0" in process.stdout
    assert re.search(r"causal_conv1d, cpu, cpu baseline, float64, .*: crashes Python \(SIGSEGV\)", process.stdout)
    assert re.search(r"causal_conv1d +cpu +torch +0\.", process.stdout)
    wrong = figures(file)["wrong"]
    assert {row["operator"] for row in wrong} == {"norm_gate", "causal_conv1d"}
    assert sum(row["operator"] == "causal_conv1d" for row in wrong) == 1


def test_without_torch(run_python, tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ModuleNotFoundError('No module named torch', name='torch')")
    file = tmp_path / "report.md"
    process = run_python("-m", "mtlkit", "doctor", "--report", file, path=[tmp_path])
    assert process.returncode == doctor.LEFT_OUT, process.stderr
    assert "Nothing was checked: torch does not import: ModuleNotFoundError: No module named torch" in process.stdout
    assert "needs torch" in file.read_text()


def test_a_damaged_module(run_python, package, tmp_path):
    (package / "_C.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    arguments = ["doctor", "--quick", "--operator", "norm_gate", "--report", tmp_path / "report.md"]
    process = run_python("-m", "mtlkit", *arguments, copy=package.parent)
    assert process.returncode == 1, process.stderr
    assert "The compiled module is damaged: mtlkit._C crashes Python at load (SIGSEGV)" in process.stdout
    assert "All 12 calls are right" in process.stdout
