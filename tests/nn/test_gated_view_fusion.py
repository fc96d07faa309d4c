"""GatedViewFusion: golden values, missing views, properties, errors."""

import json
from pathlib import Path

import pytest
import torch

from mtlkit.nn import GatedViewFusion

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "golden_csa_moe_fusion.json").read_text())
FUSION = GOLDEN["view_fusion"]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_golden(dtype, tolerance):
    def tensor(name):
        return torch.tensor(FUSION[name], dtype=dtype)

    fusion = GatedViewFusion(dim=3, views=4, hidden=5, dtype=dtype)
    names = {"fc1.weight": "W1", "fc1.bias": "b1", "fc2.weight": "W2", "fc2.bias": "b2"}
    fusion.load_state_dict({key: tensor(name) for key, name in names.items()})
    fused, alpha = fusion(tensor("v").transpose(0, 1))
    torch.testing.assert_close(alpha, tensor("alpha"), atol=tolerance, rtol=0)
    torch.testing.assert_close(fused, tensor("v_fused"), atol=tolerance, rtol=0)


def test_absent_views_get_nothing():
    fusion = GatedViewFusion(dim=6)
    features = torch.randn(3, 4, 6, requires_grad=True)
    present = torch.tensor([[True] * 4, [True, False, False, True], [False, True, False, False]])
    fused, alpha = fusion(features, present)
    torch.testing.assert_close(alpha.sum(1), torch.ones(3))
    assert torch.equal(alpha > 0, present)
    assert torch.equal((fused.unflatten(1, (4, 6)) != 0).any(2), present)
    torch.testing.assert_close(fused[0], fusion(features)[0][0])
    assert alpha[2, 1] == 1
    fused.sum().backward()
    assert features.grad.isfinite().all()


def test_length_and_gradcheck():
    fusion = GatedViewFusion(dim=3, hidden=4, dtype=torch.float64)
    features = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert fusion(features)[0].shape == (2, 12)
    assert torch.autograd.gradcheck(fusion, features)


def test_errors():
    fusion = GatedViewFusion(dim=6)
    with pytest.raises(ValueError, match=r"features: expected shape \(B, 4, 6\), got \(2, 3, 6\)"):
        fusion(torch.randn(2, 3, 6))
    with pytest.raises(ValueError, match=r"present: expected shape \(B, V\) = \(2, 4\), got \(4,\)"):
        fusion(torch.randn(2, 4, 6), torch.ones(4, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"present: expected a boolean tensor, got torch.float32"):
        fusion(torch.randn(2, 4, 6), torch.ones(2, 4))
    with pytest.raises(ValueError, match="views: expected a number above 0"):
        GatedViewFusion(dim=6, views=0)
    assert "views=4" in repr(fusion)
