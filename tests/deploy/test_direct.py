"""Programs that are translated as traced: their files are those of a decomposed program; others are decomposed."""

from contextlib import nullcontext

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram

import mtlkit
from mtlkit.deploy import _direct

SIZES = (2, 3, 12, 10), (1, 3, 6, 14), (0, 3, 8, 8)


class Direct(nn.Module):
    """All operators of the module's tables."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 1), padding=1, output_padding=(1, 0), groups=2)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = F.silu(self.norm(self.conv(x)), inplace=True)
        y = self.conv(x).mul_(y).add_(y).relu_().to(torch.float32)
        left, right = y.chunk(2, 1)
        var, mean = torch.var_mean(y, (2, 3), correction=0)
        kept, _ = torch.var_mean(y, 1, correction=0, keepdim=True)
        pixels = y.permute(0, 2, 3, 1)
        windows = y.unflatten(2, (y.shape[2] // 2, 2)).flatten(3)
        return {
            "up": self.up(left),
            "right": right.contiguous().square(),
            "var": var + mean + kept.mean((2, 3)),
            "split": pixels.unflatten(-1, (2, 4)).flatten(-2, -2),
            "merged": pixels.flatten(1, 2),
            "vector": y.mean((2, 3), keepdim=True).flatten(1),
            "windows": windows.reshape(windows.shape[0], 8, -1).mean(-1),
            "first": y.unflatten(1, (4, 2)).flatten(0, 1).mean((2, 3)),
        }


def runs(path, given: Tensor) -> list[Tensor]:
    session = mtlkit.deploy.open_session(path, threads=1)
    return [torch.from_numpy(y) for y in session.run(None, {"x": given.numpy()})]


@pytest.fixture
def decomposed(monkeypatch) -> list[ExportedProgram]:
    """Programs that were decomposed."""
    seen, run = [], ExportedProgram.run_decompositions
    monkeypatch.setattr(ExportedProgram, "run_decompositions", lambda self, *a, **k: seen.append(self) or run(self, *a))
    return seen


def test_a_direct_file_is_that_of_a_decomposed_program(tmp_path, monkeypatch, decomposed):
    torch.manual_seed(0)
    model, example = Direct().eval(), torch.rand(2, 3, 8, 6)
    with torch.no_grad():
        direct = mtlkit.export(model, tmp_path / "direct.onnx", example=example)
        assert not decomposed
        monkeypatch.setattr(_direct, "prepared", lambda *_: nullcontext(False))
        whole = mtlkit.export(model, tmp_path / "whole.onnx", example=example)
        assert decomposed
    assert direct.inputs == whole.inputs
    assert direct.outputs.keys() == whole.outputs.keys()
    for size in SIZES:
        x = torch.rand(size)
        for got, other in zip(runs(tmp_path / "direct.onnx", x), runs(tmp_path / "whole.onnx", x), strict=True):
            assert got.shape == other.shape
            torch.testing.assert_close(got, other, rtol=1e-6, atol=1e-7)


class Overwritten(nn.Module):
    """Writes into what it reads again, into a view, or into what dropout returns, which is its input; or casts."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        if self.how == "read again":
            return y + y.mul_(2)
        if self.how == "view":
            y[:, :1].mul_(2)
            return y
        if self.how == "dropout":
            return F.dropout(y, training=False).mul_(2) + y
        return (y.double() + 1).float()


@pytest.mark.parametrize("how", ["read again", "view", "dropout", "dtype"])
def test_tensors_that_are_overwritten(how, tmp_path, decomposed):
    model, x = Overwritten(how).eval(), torch.rand(2, 3, 4)
    mtlkit.export(model, tmp_path / "net.onnx", example=x, plain=True)
    assert bool(decomposed) == (how != "read again")
    assert runs(tmp_path / "net.onnx", x)[0].allclose(model(x), atol=1e-6)


@pytest.mark.parametrize("untranslated", [False, True])
def test_a_program_to_decompose_is_as_it_was_traced(untranslated, tmp_path):
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            y = torch.ops.aten.addcdiv(y, y, y) if untranslated else F.dropout(y, training=False).mul_(2) + y
            return y.permute(0, 2, 1).reshape(x.shape[0], -1)  # not a view

    x = torch.rand(2, 3, 4)
    mtlkit.export(Net(), tmp_path / "net.onnx", example=x, plain=True)
    assert runs(tmp_path / "net.onnx", x)[0].allclose(Net().eval()(x), atol=1e-6)


def test_an_operator_without_a_translation_is_decomposed(tmp_path, decomposed):
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten.addcdiv(x, x, x + 1) + torch.ops.aten.std.correction(x, [1], keepdim=True)

    mtlkit.export(Net(), tmp_path / "net.onnx", example=torch.rand(2, 3, 4), plain=True)
    assert decomposed
    assert "addcdiv" not in {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
