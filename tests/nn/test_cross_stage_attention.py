"""CrossStageAttention: golden values, properties, parameters, errors."""

import json
from pathlib import Path

import pytest
import torch

from mtlkit.nn import CrossStageAttention

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "golden_csa_moe_fusion.json").read_text())["csa"]
RESNET18 = (64, 128, 256, 512)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_golden(dtype, tolerance):
    def tensor(name):
        return torch.tensor(GOLDEN[name], dtype=dtype)

    features = [torch.tensor(stage, dtype=dtype) for stage in GOLDEN["F"]]
    layer = CrossStageAttention([f.shape[1] for f in features], dim=4, hidden=3, dtype=dtype)
    state = {"query": tensor("query")}
    for k in range(len(features)):
        state[f"keys.{k}.weight"] = torch.tensor(GOLDEN["WK"][k], dtype=dtype)
        state[f"values.{k}.weight"] = torch.tensor(GOLDEN["WV"][k], dtype=dtype)
    for part in ("down", "up"):
        state[f"{part}.weight"], state[f"{part}.bias"] = tensor(f"W_{part}"), tensor(f"b_{part}")
    layer.load_state_dict(state)
    last, alpha = layer(features)
    torch.testing.assert_close(alpha, tensor("alpha"), atol=tolerance, rtol=0)
    torch.testing.assert_close(last, tensor("F4_hat"), atol=tolerance, rtol=0)


def test_parameter_count():
    assert sum(p.numel() for p in CrossStageAttention(RESNET18, device="meta").parameters()) == 287_424
    vgg = CrossStageAttention((128, 128, 256, 512), device="meta")
    assert sum(p.numel() for p in vgg.parameters()) == 303_808


def test_properties():
    layer = CrossStageAttention((6, 8, 10))
    features = [torch.randn(3, c, s, s) for c, s in ((6, 9), (8, 5), (10, 3))]
    last, alpha = layer(features)
    torch.testing.assert_close(alpha.sum(1), torch.ones(3))
    ratio = last / features[-1]
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio), rtol=1e-4, atol=1e-5)
    assert ratio.min() > 0
    assert ratio.max() < 1


def test_equal_keys_share_evenly():
    layer = CrossStageAttention((6, 6, 6, 6))
    for key in layer.keys:
        key.weight.data = layer.keys[0].weight.data
    stage = torch.randn(2, 6, 4, 4)
    _, alpha = layer([stage] * 4)
    torch.testing.assert_close(alpha, torch.full((2, 4), 0.25))


def test_every_parameter_learns_and_gradcheck():
    layer = CrossStageAttention((3, 4), dim=5, hidden=6, dtype=torch.float64)
    features = [torch.randn(2, c, 3, 3, dtype=torch.float64, requires_grad=True) for c in (3, 4)]
    assert torch.autograd.gradcheck(lambda *maps: layer(maps), features)
    layer.up.bias.data.fill_(0.1)
    layer(features)[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.any(), name


def test_errors():
    layer = CrossStageAttention((6, 8))
    with pytest.raises(ValueError, match="features: expected 2 maps, got 1"):
        layer([torch.randn(1, 6, 2, 2)])
    with pytest.raises(ValueError, match=r"features\[1\]: expected shape \(1, 8, H, W\), got \(1, 6, 2, 2\)"):
        layer([torch.randn(1, 6, 2, 2)] * 2)
    with pytest.raises(ValueError, match="channels: expected a number above 0"):
        CrossStageAttention(())
    assert "channels=(6, 8)" in repr(layer)
