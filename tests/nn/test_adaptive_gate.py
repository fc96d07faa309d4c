"""AdaptiveGate: golden values, properties, parameters, errors."""

import json
from pathlib import Path

import pytest
import torch

from mtlkit.nn import AdaptiveGate

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "golden_csa_moe_fusion.json").read_text())
GATE = GOLDEN["moe_gate"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_golden(dtype, tolerance):
    def tensor(name):
        return torch.tensor(GATE[name], dtype=dtype)

    gate = AdaptiveGate(dim=5, experts=3, hidden=4, dtype=dtype).eval()
    names = {"fc1.weight": "W1", "fc1.bias": "b1", "fc2.weight": "W2", "fc2.bias": "b2", "bn.weight": "bn_gamma"}
    names |= {"bn.bias": "bn_beta", "bn.running_mean": "bn_mean", "bn.running_var": "bn_var"}
    gate.load_state_dict({key: tensor(name) for key, name in names.items()})
    fused, weights = gate(torch.stack([tensor(name) for name in ("F_I", "F_T", "F_B")], 1))
    torch.testing.assert_close(weights, tensor("w"), atol=tolerance, rtol=0)
    torch.testing.assert_close(fused, tensor("F_FEF"), atol=tolerance, rtol=0)


def test_parameter_count():
    assert sum(p.numel() for p in AdaptiveGate(device="meta").parameters()) == 98_691


def test_equal_experts_are_passed_on():
    gate = AdaptiveGate(dim=6).train()
    one = torch.randn(4, 1, 6)
    fused, weights = gate(one.expand(4, 3, 6))
    torch.testing.assert_close(fused, one[:, 0])
    torch.testing.assert_close(weights.sum(1), torch.ones(4))


def test_gradcheck():
    gate = AdaptiveGate(dim=4, experts=2, hidden=5, dtype=torch.float64).eval()
    assert torch.autograd.gradcheck(gate, torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True))


def test_errors():
    gate = AdaptiveGate(dim=6)
    with pytest.raises(ValueError, match=r"features: expected shape \(B, 3, 6\), got \(4, 2, 6\)"):
        gate(torch.randn(4, 2, 6))
    with pytest.raises(ValueError, match="experts: expected a number above 0"):
        AdaptiveGate(experts=0)
    with pytest.raises(ValueError, match="dropout: expected a probability"):
        AdaptiveGate(dropout=1.0)
    assert "experts=3" in repr(gate)
