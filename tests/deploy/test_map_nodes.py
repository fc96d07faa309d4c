"""The nodes between convolutions, compared with the layers that they replace, in float64 by the policy."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mtlkit
from harness.onnx_nodes import run_node
from mtlkit.testing import assert_accurate

# batches of 0 and 5, one pixel, different heights and widths, more pixels than in a block
MAPS = [(2, 9, 5, 7), (1, 16, 1, 1), (5, 17, 3, 11), (0, 8, 4, 4), (1, 24, 41, 53), (2, 8, 2, 1100)]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shape", MAPS, ids=str)
def test_gated_residual(shape, gated):
    B, C = shape[:2]
    maps, weights = [draw(*shape) + i for i in range(3)], draw(B, 3).softmax(-1)
    bias, residual = draw(C), -draw(*shape)
    attention = mtlkit.nn.DualPathAttention(C).requires_grad_(False)
    for parameter in attention.parameters():
        parameter.copy_(draw(*parameter.shape) / 3)
    layers = attention.ch_fc1, attention.ch_fc2, attention.spatial
    gates = [tensor for layer in layers for tensor in (layer.weight, layer.bias)] if gated else []
    (y,) = run_node("GatedResidual", [*maps, weights, bias, residual, *gates])
    h = sum(m.double() * w for m, w in zip(maps, weights.double()[:, :, None, None, None].unbind(1), strict=True))
    h = h + bias.double()[:, None, None]
    if gated:
        h = attention.double()(h)
    assert_accurate("y", y, F.relu(h + residual.double()))


@pytest.mark.parametrize("crop", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 2, 1, 1), (0, 2, 3, 3)], ids=str)
def test_interleave(shape, crop):
    phases = [draw(*shape) + i for i in range(4)]
    (y,) = run_node("Interleave", phases, crop_rows=crop[0], crop_columns=crop[1])
    B, C, H, W = shape
    expected = torch.stack(phases, -1).view(B, C, H, W, 2, 2).permute(0, 1, 2, 4, 3, 5).reshape(B, C, 2 * H, 2 * W)
    assert torch.equal(y, expected[:, :, : 2 * H - crop[0], : 2 * W - crop[1]])


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1), (4,), (0, 8), (3, 24, 48)], ids=str)
def test_shuffle(shape):
    left, right = draw(*shape), draw(*shape) + 1
    (y,) = run_node("Shuffle", [left, right])
    assert torch.equal(y, torch.stack([left, right], -1).flatten(-2))


@pytest.mark.parametrize(
    ("kind", "shapes", "attributes", "words"),
    [
        ("Shuffle", [(2, 3), (2, 4)], {}, r"right: expected shape \(..., D\), that of left, = \(2, 3\), got \(2, 4\)"),
        ("Shuffle", [(2, 0), (2, 0)], {}, r"left: expected shape \(..., D\) with sizes of at least 1, got \(2, 0\)"),
        ("Interleave", [(1, 2, 3, 3)] * 3 + [(1, 2, 3, 4)], {}, r"phase_11: expected shape .* got \(1, 2, 3, 4\)"),
        ("Interleave", [(1, 2, 3, 3)] * 4, {"crop_rows": 2}, "crop_rows: expected 0 or 1"),
        ("GatedResidual", [(1, 2, 3, 3)] * 3 + [(1, 2), (2,), (1, 2, 3, 3)], {}, r"weights: expected shape \(B, 3\)"),
        ("GatedResidual", [(1, 2, 3, 3)] * 3 + [(1, 3), (2,), (1, 2, 3)], {}, r"residual: expected shape"),
        (
            "GatedResidual",
            [(1, 2, 3, 3)] * 3 + [(1, 3), (2,), (1, 2, 3, 3), (4, 2)],
            {},
            r"fc1_bias: expected shape \(hidden,\) = \(4,\), got none",
        ),
    ],
)
def test_wrong_shapes(kind, shapes, attributes, words):
    with pytest.raises(Exception, match=words):
        run_node(kind, [torch.randn(shape) for shape in shapes], **attributes)
