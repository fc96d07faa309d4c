"""Layers that are exported as one node."""

import onnx
import pytest
import torch
from torch import Tensor, nn

import mtlkit
from mtlkit import deploy
from mtlkit.testing import relative_error


class Level(nn.Module):
    """Returns all outputs of a level of interaction."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.level = mtlkit.nn.InteractionLevel(6, 8, **options)

    def forward(self, seg: Tensor, clf: Tensor):
        out = self.level(seg, clf, return_enhanced=True)
        return out.seg, out.clf, out.gates, *out.stats, out.enhanced_clf, out.enhanced_seg


def check(model: nn.Module, path, given: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> list[str]:
    """Exports, compares at another size, and returns the kinds of the nodes."""
    mtlkit.export(model, path, example=given)
    session = deploy.open_session(path)
    found = session.run(None, {one.name: t.numpy() for one, t in zip(session.get_inputs(), other, strict=True)})
    with torch.no_grad():
        expected = model(*other)
    for got, exact in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert relative_error(torch.from_numpy(got), exact) < 1e-5
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"signals": "alignment", "pooling": "attention"}, "TaskInteraction"),
        ({"signals": "variance", "normaliser": "running"}, "TaskInteraction"),
        ({"signals": "alignment", "directions": ("seg_to_clf",)}, "InteractionReduce"),
    ],
)
def test_levels(options, kind, tmp_path):
    model = Level(**options).eval()
    kinds = check(
        model,
        tmp_path / "net.onnx",
        (torch.randn(2, 6, 5, 7), torch.randn(2, 8)),
        (torch.randn(3, 6, 9, 4), torch.randn(3, 8)),
    )
    assert kinds.count(kind) == 1


@pytest.mark.parametrize(("dim", "attention"), [(8, True), (12, False)])
def test_residual_blocks(dim, attention, tmp_path):
    block = mtlkit.nn.ResidualBlock(8, dim, attention).eval().requires_grad_(False)
    for parameter in block.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    before = {name: value.clone() for name, value in block.state_dict().items()}
    kinds = check(block, tmp_path / "net.onnx", (torch.randn(2, 8, 16, 24),), (torch.randn(1, 8, 13, 22),))
    assert kinds.count("GatedResidual") == 1
    assert kinds.count("Conv") == 10 + (dim != 8)  # without the last convolution of the fusion
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


def test_padding_of_tensorflow(tmp_path):
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(layers.Conv2dSame(3, 4, 3, 2), layers.Conv2dSame(4, 4, 5, 2, groups=4, bias=False)).eval()
    kinds = check(model, tmp_path / "net.onnx", (torch.randn(2, 3, 16, 24),), (torch.randn(1, 3, 13, 22),))
    assert kinds == ["Conv", "Conv"]
