"""`mtlkit bench`: checks before timing, printed and written results, and rejected input."""

import json

import pytest
import torch

import mtlkit
from mtlkit.cli import main
from mtlkit.cli._timing import BOTH, FORWARD, Call, logits, medians, network, operators

OPERATORS = ["ss2d", "selective_scan", "dwconv_silu", "norm_gate", "task_interaction"]


def test_gradients_are_of_every_tensor():
    x, w = (torch.rand(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    results = Call(lambda x, w: x * w.exp(), {"x": x, "w": w}).results(BOTH)
    weights = torch.linspace(-1, 1, 3, dtype=torch.float64)
    torch.testing.assert_close(results["x"], weights * w.detach().exp())
    torch.testing.assert_close(results["w"], weights * (x * w.exp()).detach())
    assert set(Call(lambda x, w: x * w, {"x": x, "w": w}).results(FORWARD)) == {"output"}


def test_every_operator_is_measured_at_two_sizes():
    shapes = [[(what, shape) for what, shape, _ in operators(quick, torch.float32, "cpu")] for quick in (True, False)]
    for found in shapes:
        assert [what for what, _ in found] == OPERATORS
    assert all(small != large for small, large in zip(*shapes, strict=True))


@pytest.mark.parametrize("name", ["medmamba_t", "csa_moe", "hybrid_vssm"])
def test_networks_take_what_they_are_given(name):
    model, inputs, words = network(name, torch.float32, "cpu", quick=True)
    with torch.no_grad():
        found = logits(model(*inputs))
    assert found.isfinite().all()
    assert found.shape[0] == 1
    assert "64 x 64" in words


def test_calls_take_turns():
    order = []
    found = medians({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0.0, "cpu")
    assert order == ["a", "b"] * 4
    assert set(found) == {"a", "b"}
    assert min(found.values()) > 0


@pytest.fixture
def fast(monkeypatch):
    """A small network, and one round."""
    monkeypatch.setattr("mtlkit.cli._timing.medians", lambda calls, *_: dict.fromkeys(calls, 0.5))
    from mtlkit.models import MedMamba, MedMambaOptions, register, unregister

    register("small", MedMambaOptions(num_classes=2, depths=(1, 1), dims=(16, 32)))(MedMamba)
    yield
    unregister("small")


def test_command(fast, capsys, tmp_path):
    path = tmp_path / "speed.json"
    assert main(["bench", "--quick", "--model", "small", "--json", str(path)]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*OPERATORS, "small", "500 ms", "1.0"))
    assert "…" not in text  # everything fits into 80 columns
    saved = json.loads(path.read_text())
    assert (saved["mtlkit"], saved["device"]) == (mtlkit.__version__, "cpu")
    rows = saved["rows"]
    assert [row["what"] for row in rows] == [name for name in OPERATORS for _ in (FORWARD, BOTH)] + ["small"]
    for row in rows:
        assert (row["mtlkit_s"], row["torch_s"], row["ratio"]) == (0.5, 0.5, 1.0)
        assert 0 < row["relative_error"] < 1e-5
    assert main(["bench", "--quick", "--json", str(path)]) == 2
    assert "the file exists already; --force replaces it" in capsys.readouterr().err


def test_a_wrong_result_is_told_and_not_timed(fast, capsys, monkeypatch, tmp_path):
    right = mtlkit.ops.norm_gate
    monkeypatch.setattr(
        "mtlkit.ops.norm_gate", lambda x, **t: right(x, **t) * (1.001 if x.dtype == torch.float32 else 1)
    )
    assert main(["bench", "--quick", "--model", "small", "--json", str(tmp_path / "speed.json")]) == 2
    error = capsys.readouterr().err
    assert "a result is wrong, and nothing was measured further: norm_gate, mtlkit: output: relative error 1.0" in error
    assert not (tmp_path / "speed.json").exists()


def test_a_wrong_network_is_told(fast, capsys, monkeypatch):
    forward = mtlkit.nn.SS2D.forward
    monkeypatch.setattr("mtlkit.cli._timing.measure_operators", lambda *_: iter(()))
    monkeypatch.setattr(
        "mtlkit.nn.SS2D.forward", lambda self, x: forward(self, x) * (1 + 1e-3 * (x.dtype == torch.float32))
    )
    assert main(["bench", "--quick", "--model", "small"]) == 2
    assert "small, mtlkit: the logits' relative error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "medmamba_x"], "--model medmamba_x: there is no such model; there are: attention_unet, btinet"),
        (["--device", "abacus"], "--device abacus: torch cannot use it"),
    ],
)
def test_bad_input(capsys, arguments, words):
    assert main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.count("\n") == 1
