"""tools/gpu.py: stages that leave their logs, whatever the others do."""

import importlib.util
import sys

import pytest


@pytest.fixture
def gpu(root):
    spec = importlib.util.spec_from_file_location("gpu_tool", root / "tools/gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_stage_that_fails_does_not_stop_the_others(gpu, monkeypatch, tmp_path, capsys):
    def command(stage, *_):
        return [sys.executable, "-c", f"print('this is {stage}'); raise SystemExit({int(stage == 'small')})"]

    monkeypatch.setattr(gpu, "command", command)
    assert gpu.main(["doctor", "small", "tests", "--out", str(tmp_path)]) == 1
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["doctor.log", "small.log", "summary.md", "tests.log"]
    assert (tmp_path / "tests.log").read_text() == "this is tests\n"
    rows = [row.split(" | ")[:2] for row in (tmp_path / "summary.md").read_text().splitlines()[2:]]
    assert rows == [["| doctor", "passed"], ["| small", "failed (1)"], ["| tests", "passed"]]
    assert "this is small" in capsys.readouterr().out
    assert gpu.main(["doctor", "--out", str(tmp_path)]) == 0


def test_a_missing_sanitizer_is_named(gpu, tmp_path, capsys):
    assert gpu.main(["memcheck", "--out", str(tmp_path), "--sanitizer", "/no/such/compute-sanitizer"]) == 1
    assert "/no/such/compute-sanitizer not found" in capsys.readouterr().out
    assert "failed (127)" in (tmp_path / "summary.md").read_text()


def test_commands(gpu, root, tmp_path):
    """Every file that they name is there, and only the sanitizer's stages go through it."""
    for stage in gpu.STAGES:
        line = gpu.command(stage, tmp_path, "sanitizer")
        assert (line[0] == "sanitizer") == (stage in ("memcheck", "racecheck"))
        files = [part for part in line if part.startswith(("tests", "benchmarks"))]
        assert all((root / file).exists() for file in files)
    assert gpu.command("doctor", tmp_path, "")[-1] == str(tmp_path / "doctor.md")
