"""tools/gpu.py: every stage leaves its results, however others end and however long they take."""

import importlib.util
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest


def load(root, name):
    spec = importlib.util.spec_from_file_location(name, root / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gpu(root, monkeypatch):
    module = load(root, "gpu")
    monkeypatch.setattr(module, "why_no_gpu", lambda: None)
    return module


def summary(folder) -> list[list[str]]:
    lines = (folder / "summary.md").read_text().splitlines()
    return [row.strip("| ").split(" | ") for row in lines if row.startswith("| ")][1:]


@pytest.fixture
def here(tmp_path):
    return ["--out", str(tmp_path), "--results", str(tmp_path)]


def test_a_stage_that_fails_does_not_stop_the_others(gpu, monkeypatch, tmp_path, here, capsys):
    def command(stage, *_):
        return [sys.executable, "-c", f"print('this is | {stage}'); raise SystemExit({int(stage == 'small')})"]

    monkeypatch.setattr(gpu, "command", command)
    assert gpu.main(["doctor", "small", "tests", *here]) == 1
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["log.txt", "summary.md"]
    log = (tmp_path / "log.txt").read_text()
    assert all(f"== {stage}: " in log and f"\nthis is | {stage}\n" in log for stage in ("doctor", "small", "tests"))
    assert [row[:2] for row in summary(tmp_path)] == [
        ["doctor", "passed"],
        ["small", "failed (1)"],
        ["tests", "passed"],
    ]
    assert summary(tmp_path)[0][3] == "this is / doctor"
    assert "this is | small" in capsys.readouterr().out
    assert gpu.main(["doctor", *here]) == 0


def test_what_takes_too_long_is_cut_off(gpu, monkeypatch, tmp_path, here):
    """The first stage reports its results on Ctrl-C, the second ignores it, and no time is left for the third."""
    clock = [0.0]

    class Timer(threading.Thread):
        """Rings once the stage runs, and counts its seconds without waiting for them."""

        def __init__(self, seconds, ring):
            super().__init__(target=self.wait, args=(seconds, ring))

        def wait(self, seconds, ring):
            while not (begun := list(tmp_path.glob("begun*"))):
                time.sleep(0.01)
            begun[0].unlink()
            clock[0] += seconds
            ring()

        def cancel(self):
            self.join()

    begin = f"import signal, tempfile, time\nbegin = lambda: tempfile.mkstemp(prefix='begun', dir={str(tmp_path)!r})\n"
    code = {
        "doctor": f"{begin}try: begin(); time.sleep(60)\nexcept KeyboardInterrupt: print('1 failed, 2 passed')",
        "small": f"{begin}signal.signal(signal.SIGINT, signal.SIG_IGN); begin(); time.sleep(60)",
        "tests": "print('never')",
    }
    monkeypatch.setattr(gpu, "command", lambda stage, *_: [sys.executable, "-c", code[stage]])
    monkeypatch.setattr(gpu, "GRACE", 3)
    monkeypatch.setattr(gpu, "STAGES", {name: stage._replace(share=0.5) for name, stage in gpu.STAGES.items()})
    monkeypatch.setattr(gpu, "threading", SimpleNamespace(Timer=Timer, Event=threading.Event))
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    assert gpu.main(["doctor", "small", "tests", "--minutes", "1", *here]) == 1
    assert [row[:3] for row in summary(tmp_path)] == [
        ["doctor", "cut off", "30"],
        ["small", "cut off", "27"],
        ["tests", "not run", "0"],
    ]
    assert summary(tmp_path)[0][3] == "1 failed, 2 passed"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_packed_peers_are_compiled_before_they_are_measured(gpu, monkeypatch, tmp_path, here):
    """They compile during the first stages; their output has a separate file."""
    (tmp_path / "peers").mkdir()
    (tmp_path / "tools").mkdir()
    (tmp_path / "bundle.json").write_text('{"archs": "80;90"}')
    (tmp_path / "tools/gpu_peers.py").write_text("import sys; print('built by', *sys.argv[1:6])\n")
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "command", lambda stage, *_: [sys.executable, "-c", "print(1)"])
    assert gpu.main(["doctor", "scans", *here]) == 0
    assert [row[:2] for row in summary(tmp_path)] == [["doctor", "passed"], ["peers", "passed"], ["scans", "passed"]]
    assert summary(tmp_path)[1][3] == "built by peers --out build/peers --install --archs"
    (tmp_path / "tools/gpu_peers.py").write_text("import time; time.sleep(60)\n")
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    assert gpu.main(["scans", "--minutes", "0.05", *here]) == 0
    assert [row[:2] for row in summary(tmp_path)] == [["peers", "cut off"], ["scans", "passed"]]
    assert gpu.main(["doctor", *here]) == 0
    assert [row[0] for row in summary(tmp_path)] == ["doctor"]


def test_without_a_gpu_doctor_alone_runs(gpu, monkeypatch, tmp_path, here, capsys):
    monkeypatch.setattr(gpu, "why_no_gpu", lambda: "torch 2.11.0 sees no GPU here")
    monkeypatch.setattr(gpu, "command", lambda stage, *_: [sys.executable, "-c", "print('All 7 calls are right')"])
    assert gpu.main(here) == 1
    assert summary(tmp_path)[0][:2] == ["doctor", "passed"]
    assert len(summary(tmp_path)) == 1
    assert "No GPU: torch 2.11.0 sees no GPU here" in (tmp_path / "summary.md").read_text()
    assert "No GPU" in capsys.readouterr().out


def test_a_missing_sanitizer_is_named(gpu, tmp_path, here, capsys):
    assert gpu.main(["memcheck", "--sanitizer", "/no/such/compute-sanitizer", *here]) == 1
    assert "/no/such/compute-sanitizer not found" in capsys.readouterr().out
    assert summary(tmp_path)[0][:2] == ["memcheck", "failed"]


def test_a_limit_must_be_a_time(gpu, here, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--minutes", "0", *here])
    assert "--minutes: expected more than 0, got 0" in capsys.readouterr().err


def test_commands(gpu, root, tmp_path):
    """All files in the commands exist, and only the sanitizer's stages use it."""
    folders = gpu.Folders(tmp_path, tmp_path / "rows")
    for stage in gpu.STAGES:
        line = gpu.command(stage, folders, "sanitizer")
        assert (line[0] == "sanitizer") == (stage in ("memcheck", "racecheck"))
        files = [part for part in line if part.startswith(("tests", "benchmarks"))]
        assert all((root / file).exists() for file in files)
        assert (f"--results={tmp_path / 'rows'}" in line) == ("benchmarks/test_bench_gpu.py" in line)
    report = str(tmp_path / "doctor.md")
    assert gpu.command("doctor", folders, "")[-3:] == [report, "--backend", "cuda"]
    assert gpu.command("doctor", folders, "", gpu=False)[-1] == report


def test_first_rows_belong_to_one_stage(gpu):
    """Evaluates -k with pytest itself; the last stage runs all remaining rows."""
    from _pytest.mark.expression import Expression

    stages = {name: stage.line[stage.line.index("-k") + 1] for name, stage in gpu.STAGES.items() if "-k" in stage.line}
    del stages["compile"]  # its rows are those of triton
    rows = {
        "ss2d_layer_core-medmamba_t_stage1-batch32-float32-forward-medmamba": "scans",
        "ss2d_layer_core-medmamba_t_stage1-batch32-float32-forward-mtlkit-triton": "triton",
        "ss2d_layer_core-medmamba_t_stage1-batch32-float32-forward-torch-compile": "triton",
        "selective_scan-vim_tiny-batch32-float32-forward-mamba-ssm": "scans",
        "task_interaction-busi_224_level4_batch24-float32-forward-mtlkit-cuda": "scans",
        "medmamba_t-image_224-batch32-float32-training_step-mtlkit-triton": "networks",
    }
    for row, stage in rows.items():
        found = [
            name for name, k in stages.items() if Expression.compile(k).evaluate(lambda word, row=row: word in row)
        ]
        assert found == [stage], row
