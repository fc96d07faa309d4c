"""`mtlkit profile`: shares add up, rows for operators and other work, predictions, and rejected input."""

import json

import pytest

from mtlkit import _native
from mtlkit.cli import _profiling, main
from mtlkit.cli._profiling import GROUPS, kind_of
from mtlkit.operators.floors import GPUS
from mtlkit.testing import SS2DShape

LAYER = "ss2d" if _native.C is None else "ss2d_layer"


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A network that takes milliseconds, and few rounds."""
    from mtlkit.models import MedMamba, MedMambaOptions, register, unregister

    monkeypatch.setattr(_profiling, "MOST", 3)
    register("small", MedMambaOptions(num_classes=2, depths=(1, 1), dims=(16, 32)))(MedMamba)
    yield
    unregister("small")


def rows_of(path, *arguments):
    """The rows that the command writes for a network at 32 x 32 pixels."""
    assert main(["profile", "small", "--size", "32", "--json", str(path), *arguments]) == 0
    return json.loads(path.read_text())


@pytest.mark.parametrize("training", [False, True])
def test_shares_of_measured_time_add_up(capsys, tmp_path, training):
    found = rows_of(tmp_path / "profile.json", *(["--training"] if training else []))
    printed = capsys.readouterr()
    assert printed.err == ""
    assert (found["predicted"], found["device"], found["size"]) == (False, "cpu", 32)
    rows = found["rows"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert found["seconds"] > 0
    assert {"convolutions", "normalisation", "rest"} <= {row["what"] for row in rows} & set(GROUPS)
    operators = [row for row in rows if row["what"] not in GROUPS]
    assert all(row["seconds"] > 0 and row["floor_s"] > 0 and row["calls"] > 0 for row in operators)
    assert "100.0 %" in printed.out
    if _native.C is not None:
        whole = {(row["what"], row["direction"]) for row in operators}
        parts = {("ss2d", "backward"), ("norm_gate", "backward")}  # whose autograd nodes are separate
        assert parts < whole if training else whole == {(LAYER, "forward")}
        assert {row["backend"] for row in operators} == {"cpu"}


def test_a_prediction_needs_no_gpu_and_tells_no_time(capsys, tmp_path):
    found = rows_of(tmp_path / "profile.json", "--dry-run", "--gpu", "H200", "--batch", "2")
    text = capsys.readouterr().out
    assert "predicted floors on H200, from its data sheet; nothing is measured" in text
    assert text.splitlines()[0] == "small, inference, 2 images, 32 x 32, float32"
    assert "time" not in text.splitlines()[3]
    assert found["predicted"]
    assert "seconds" not in found
    rows = found["rows"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert not any("seconds" in row or "floor_s" in row for row in rows)
    scans = [row for row in rows if row["what"] == "ss2d_norm_gate"]
    assert [row["sizes"] for row in scans] == ["2 x 16 x 8 x 8, N 16", "2 x 32 x 4 x 4, N 16"]
    for row in scans:
        assert row["backend"] in ("cuda", "triton")
        plan = row["plan"]
        assert plan["blocks_per_sm"] == -(-plan["blocks"] // GPUS["h200"].multiprocessors)
    updates = SS2DShape(2, 16, 8, 8, 16, 1).updates
    least = updates * (1 + 2 / 16) / GPUS["h200"].limits.exponentials
    assert scans[0]["predicted_floor_s"] >= scans[0]["calls"] * least


def test_training_is_predicted(tmp_path):
    rows = rows_of(tmp_path / "profile.json", "--dry-run", "--gpu", "a100", "--training")["rows"]
    floors = {(row["what"], row["direction"]): row["predicted_floor_s"] for row in rows}
    assert floors["ss2d_norm_gate", "backward"] > floors["ss2d_norm_gate", "forward"] > 0
    assert floors["convolutions", ""] > 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::convolution_backward", "convolutions"),
        ("aten::addmm", "linear"),
        ("aten::native_batch_norm_backward", "normalisation"),
        ("aten::_softmax", None),
    ],
)
def test_kinds_of_work(name, kind):
    assert kind_of(name) == kind


def test_task_interaction_is_predicted(tmp_path):
    path = tmp_path / "profile.json"
    assert main(["profile", "mbdi", "--size", "64", "--dry-run", "--gpu", "rtx_4090", "--json", str(path)]) == 0
    assert {"interaction_reduce", "interaction_scale"} <= {row["what"] for row in json.loads(path.read_text())["rows"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["medmamba_x"], "MODEL medmamba_x: there is no such model or folder; there are: attention_unet, btinet"),
        (["small", "--size", "0"], "--size: expected at least 1, got 0"),
        (["small", "--batch", "-1"], "--batch: expected at least 1, got -1"),
        (["small", "--dry-run"], "--dry-run: --gpu is not given; there are: t4, a100"),
        (["small", "--dry-run", "--gpu", "h2000"], "--gpu h2000: its data is not known; there are: t4, a100"),
        (["small", "--gpu", "h200"], "--gpu: expected with --dry-run, which is not given"),
        (["small", "--dry-run", "--gpu", "h200", "--device", "cpu"], "--device: expected without --dry-run"),
        (["small", "--device", "abacus"], "--device abacus: torch cannot use it"),
    ],
)
def test_bad_input(capsys, arguments, words):
    assert main(["profile", *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_a_file_that_is_there_is_kept(capsys, tmp_path):
    path = tmp_path / "profile.json"
    path.write_text("mine")
    assert main(["profile", "small", "--dry-run", "--gpu", "h200", "--json", str(path)]) == 2
    assert "the file exists already; --force replaces it" in capsys.readouterr().err
    assert path.read_text() == "mine"
