"""SSConvSSM: golden values, the shuffle, gradients, modes, edge cases."""

import pytest
import torch

from mtlkit.nn import SSConvSSM
from mtlkit.testing import assert_accurate


def test_golden(assert_golden, backend, dtype):
    assert_golden("medmamba_ss_conv_ssm", SSConvSSM(8, d_state=3), dtype)


@pytest.mark.parametrize(
    ("dim", "count"),
    [(64, 40544), (96, 80784), (128, 134336), (192, 281376), (256, 481664), (384, 1041984), (512, 1815296)],
)
def test_parameter_counts(dim, count):
    assert sum(p.numel() for p in SSConvSSM(dim, device="meta").parameters()) == count


def test_halves_are_interleaved():
    block = SSConvSSM(8).eval()
    x = torch.randn(2, 5, 4, 8)
    added = block(x) - x
    left = block.conv33conv33conv11(x[..., :4].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    right = block.self_attention(block.ln_1(x[..., 4:]))
    torch.testing.assert_close(added[..., 0::2], left)
    torch.testing.assert_close(added[..., 1::2], right)


@pytest.mark.parametrize("other", ["cpu", "torch"])
def test_gradients_of_every_parameter(gradients, other):
    block = SSConvSSM(8, d_state=3, dtype=torch.float64).eval()
    x = torch.randn(2, 7, 5, 8, dtype=torch.float64)
    exact, got = gradients(block, x, "reference"), gradients(block, x, other)
    for name in exact:
        assert_accurate(name, got[name], exact[name], gradient=name != "output")


def test_training_updates_the_running_statistics():
    block = SSConvSSM(8).train()
    block(3 + torch.randn(2, 5, 4, 8))
    assert block.conv33conv33conv11[0].running_mean.mean().item() == pytest.approx(0.3, abs=0.1)


def test_drop_path_leaves_the_convolutions():
    block = SSConvSSM(8, drop_path=0.99).train()
    x = torch.randn(1, 5, 4, 8)
    torch.testing.assert_close(block(x)[..., 1::2], x[..., 1::2])
    assert not torch.equal(block(x)[..., 0::2], x[..., 0::2])


def test_autocast():
    block = SSConvSSM(8).eval()
    x = torch.randn(2, 5, 4, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    torch.testing.assert_close(y.float(), block(x), atol=0.05, rtol=0.05)


def test_empty_batch():
    assert SSConvSSM(8).eval()(torch.randn(0, 5, 4, 8)).shape == (0, 5, 4, 8)


def test_state_dict_round_trip():
    block, other = SSConvSSM(8).eval(), SSConvSSM(8).eval()
    other.load_state_dict(block.state_dict())
    x = torch.randn(1, 5, 4, 8)
    assert torch.equal(block(x), other(x))


def test_bad_options_and_input():
    with pytest.raises(ValueError, match="dim: expected an even number of channels, got 7"):
        SSConvSSM(7)
    with pytest.raises(ValueError, match="p: expected a probability"):
        SSConvSSM(8, drop_path=1.0)
    with pytest.raises(ValueError, match=r"x: expected shape \(B, H, W, 8\)"):
        SSConvSSM(8)(torch.randn(1, 8, 5, 4))
    assert "dim=8" in repr(SSConvSSM(8))
