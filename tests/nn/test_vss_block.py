"""VSSBlock: golden values, gradients, modes, edge cases."""

import pytest
import torch

from mtlkit.nn import VSSBlock
from mtlkit.testing import assert_accurate


def test_golden(assert_golden, backend, dtype):
    assert_golden("vmamba_vssblock_noz", VSSBlock(4, ssm_ratio=1.0), dtype)


@pytest.mark.parametrize("other", ["cpu", "torch"])
def test_gradients_of_every_parameter(gradients, other):
    block = VSSBlock(6, dtype=torch.float64)
    x = torch.randn(2, 7, 5, 6, dtype=torch.float64)
    exact, got = gradients(block, x, "reference"), gradients(block, x, other)
    for name in exact:
        assert_accurate(name, got[name], exact[name], gradient=name != "output")


def test_first_version_has_no_perceptron():
    block = VSSBlock(8, d_state=16, gate="silu", conv_bias=True, mlp_ratio=0)
    assert not any(name.startswith(("mlp", "norm2")) for name in block.state_dict())
    x = torch.randn(2, 5, 4, 8)
    torch.testing.assert_close(block(x), x + block.op(block.norm(x)))


def test_drop_path_drops_whole_samples():
    block = VSSBlock(8, drop_path=0.5).train()
    x = torch.randn(64, 2, 2, 8)
    untouched = (block(x) == x).flatten(1).all(1)
    assert 4 <= untouched.sum() <= 30  # both branches are dropped for a quarter
    y = block.eval()(x)
    assert torch.equal(y, block(x))
    assert not (y == x).flatten(1).all(1).any()


def test_autocast():
    block = VSSBlock(8).eval()
    x = torch.randn(2, 5, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    torch.testing.assert_close(y.float(), block(x), atol=0.05, rtol=0.05)


def test_empty_batch():
    assert VSSBlock(8)(torch.randn(0, 5, 4, 8)).shape == (0, 5, 4, 8)


def test_state_dict_round_trip():
    block, other = VSSBlock(8), VSSBlock(8)
    other.load_state_dict(block.state_dict())
    x = torch.randn(1, 5, 4, 8)
    assert torch.equal(block(x), other(x))


def test_bad_options_and_input():
    with pytest.raises(ValueError, match="mlp_ratio"):
        VSSBlock(8, mlp_ratio=-1)
    with pytest.raises(ValueError, match="gate"):
        VSSBlock(8, gate="relu")
    with pytest.raises(ValueError, match=r"x: expected shape \(B, H, W, 8\)"):
        VSSBlock(8)(torch.randn(1, 5, 4, 7))
    assert "dim=8, mlp_ratio=4.0" in repr(VSSBlock(8))
