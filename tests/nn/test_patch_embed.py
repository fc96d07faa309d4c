"""PatchEmbed: parameter names, counts, and one patch computed by hand."""

import torch

from mtlkit.nn import PatchEmbed


def shapes(layer: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in layer.state_dict().items()}


def test_patch_embed():
    layer = PatchEmbed(3, 96)
    assert sum(p.numel() for p in layer.parameters()) == 4896
    assert list(shapes(layer)) == ["proj.weight", "proj.bias", "norm.weight", "norm.bias"]
    images = torch.randn(2, 3, 18, 23)
    y = layer(images)
    assert y.shape == (2, 4, 5, 96)
    torch.testing.assert_close(y, layer(images[:, :, :16, :20]))
    patch = images[0, :, 4:8, 8:12]  # row 1, column 2
    projected = torch.einsum("chw,dchw->d", patch, layer.proj.weight) + layer.proj.bias
    torch.testing.assert_close(y[0, 1, 2], layer.norm(projected))
