"""ConvUpsample: golden values, and the position of each pixel."""

import pytest
import torch

from mtlkit.nn import ConvUpsample

TOLERANCE = 1e-5


def test_golden_conv_transpose(mtl_golden, dtype):
    entry = {
        key: torch.tensor(value, dtype=dtype) for key, value in mtl_golden["conv_transpose"].items() if key != "note"
    }
    layer = ConvUpsample(2, 3, dtype=dtype)
    layer.load_state_dict({"weight": entry["kernel"], "bias": entry["bias"]})
    assert (layer(entry["x"]) - entry["y"]).abs().max() <= TOLERANCE


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 3)])
def test_upsampling_puts_each_pixel_at_twice_its_place(height, width):
    layer = ConvUpsample(2, 3, dtype=torch.float64)
    x = torch.randn(1, 2, height, width, dtype=torch.float64)
    y = layer.bias.view(1, 3, 1, 1).repeat(1, 1, 2 * height + 1, 2 * width + 1)
    for i in range(height):
        for j in range(width):
            y[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3] += torch.einsum("bi,iohw->bohw", x[:, :, i, j], layer.weight)
    torch.testing.assert_close(layer(x), y[:, :, :-1, :-1])
