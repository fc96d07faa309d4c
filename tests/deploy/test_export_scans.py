"""Third-party models that accelerate supports, and mtlkit's token blocks, as ONNX files at two sizes."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import mtlkit
from harness.third_party_cores import CORES, around
from harness.third_party_models import accelerated, perturbed
from harness.token_blocks import MambaBlock, MambaVisionMixer, MultiMamba, PlainMamba2D
from mtlkit import deploy
from mtlkit.testing import relative_error


class Of(nn.Module):
    """Wraps a module with one input or two, with names for the ONNX file."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        y = self.core(x) if other is None else self.core(x, other)
        return torch.cat([part.flatten(1) for part in y], 1) if isinstance(y, tuple) else y


class PlainMamba(nn.Module):
    """A block that gets the size of its image as an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.block = PlainMamba2D(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, (4, 6))


SEQUENCES = {
    "mamba": lambda: MambaBlock(6),
    "v1": lambda: MambaBlock(6, bimamba_type="v1"),
    "v2": lambda: MambaBlock(6, bimamba_type="v2", if_divide_out=True, init_layer_scale=0.1),
    "mambavision": lambda: MambaVisionMixer(6),
}
OF_ONE_SIZE = {
    "v3": lambda: MambaBlock(6, bimamba_type="v3", nslices=4),
    "localvim": lambda: MultiMamba(6),
    "plainmamba": PlainMamba,
}
SOON = {"v2", "plainmamba", "msvmamba"}


def cases(names) -> list:
    return [name if name in SOON else pytest.param(name, marks=pytest.mark.slow) for name in names]


def check(model: nn.Module, path: Path, example: list[Tensor], others: list[list[Tensor]]) -> set[str]:
    """Exports, compares with PyTorch, and returns the kinds of mtlkit's nodes."""
    mtlkit.export(model.eval(), path, example=example)
    session = deploy.open_session(path, threads=1)
    for given in (example, *others):
        named = {one.name: t.numpy() for one, t in zip(session.get_inputs(), given, strict=True)}
        with torch.no_grad():
            exact = model(*given)
        assert relative_error(torch.from_numpy(session.run(None, named)[0]), exact) < 1e-5
    return {node.op_type for node in onnx.load(path).graph.node if node.domain == "mtlkit"}


@pytest.mark.parametrize("name", cases(SEQUENCES))
def test_blocks_of_tokens(name, tmp_path):
    model = accelerated(nn.Sequential(perturbed(SEQUENCES[name]())))
    kinds = check(model, tmp_path / "net.onnx", [torch.randn(2, 24, 6)], [[torch.randn(5, 37, 6)]])
    assert kinds >= {"DirectionalScan"} | ({"CausalConv1d"} if name != "mambavision" else set())


@pytest.mark.parametrize("name", cases(OF_ONE_SIZE))
def test_blocks_of_one_size(name, tmp_path):
    model = accelerated(nn.Sequential(perturbed(OF_ONE_SIZE[name]())))
    kinds = check(model, tmp_path / "net.onnx", [torch.randn(2, 24, 6)], [[torch.randn(5, 24, 6)]])
    assert kinds & {"DirectionalScan", "DirectionalScans"}


@pytest.mark.parametrize("name", cases(CORES))
def test_scans(name, tmp_path):
    example = [torch.randn(shape) for shape in CORES[name][1]]
    assert check(Of(accelerated(around(name)).core), tmp_path / "net.onnx", example, [])


def test_mamba(tmp_path):
    block = mtlkit.nn.Mamba(6, bimamba_type="v2").eval()
    others = [[torch.randn(1, 40, 6)], [torch.randn(3, 1, 6)]]
    kinds = check(block, tmp_path / "net.onnx", [torch.randn(2, 9, 6)], others)
    assert kinds == {"DirectionalScan", "CausalConv1d"}
