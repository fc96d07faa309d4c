"""PatchMerging: golden values, the order of pixels, odd sizes."""

import pytest
import torch
import torch.nn.functional as F

from mtlkit.nn import PatchMerging


def test_golden(assert_golden, dtype):
    assert_golden("patch_merging", PatchMerging(2), dtype)


@pytest.mark.parametrize(("dim", "count"), [(128, 132096), (256, 526336)])
def test_parameter_counts(dim, count):
    assert sum(p.numel() for p in PatchMerging(dim, device="meta").parameters()) == count


@pytest.mark.parametrize(("odd", "size"), [("crop", (2, 3)), ("pad", (3, 3))])
def test_odd_sizes(odd, size):
    layer = PatchMerging(3, odd)
    x = torch.randn(2, 5, 6, 3)
    even = x[:, :4] if odd == "crop" else F.pad(x, (0, 0, 0, 0, 0, 1))
    corners = [even[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
    y = layer(x)
    assert y.shape == (2, *size, 6)
    torch.testing.assert_close(y, layer.reduction(layer.norm(torch.cat(corners, -1))))


def test_one_pixel():
    x = torch.randn(1, 1, 4, 3)
    assert PatchMerging(3, "pad")(x).shape == (1, 1, 2, 6)
    with pytest.raises(ValueError, match="H and W of at least 2"):
        PatchMerging(3)(x)


def test_empty_batch():
    assert PatchMerging(3)(torch.randn(0, 5, 6, 3)).shape == (0, 2, 3, 6)


def test_bad_options_and_input():
    with pytest.raises(ValueError, match="odd: expected one of 'crop', 'pad', got 'wrap'"):
        PatchMerging(3, "wrap")
    with pytest.raises(ValueError, match=r"x: expected shape \(B, H, W, 3\)"):
        PatchMerging(3)(torch.randn(1, 4, 4, 2))
    assert "dim=3, odd='crop'" in repr(PatchMerging(3))
