"""Linear layers over the channels of pixels equal F.linear, by either implementation."""

import pytest
import torch
import torch.nn.functional as F

from mtlkit._pixel_linear import PixelLinear, pixel_linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 7, 5, 12), (1, 1, 1, 12), (0, 3, 4, 12), (3, 12), (2, 9, 12), (0, 3, 12)])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_linear(dtype, shape, bias):
    x, weight = torch.randn(shape, dtype=dtype, requires_grad=True), torch.randn(9, 12, dtype=dtype)
    offset = torch.randn(9, dtype=dtype) if bias else None
    y, expected = pixel_linear(x, weight, offset), F.linear(x, weight, offset)
    torch.testing.assert_close(y, expected)
    direction = torch.randn_like(y)
    torch.testing.assert_close(*(torch.autograd.grad(t, x, direction)[0] for t in (y, expected)))


def test_layer_has_the_parameters_of_a_linear_layer():
    layer, plain = PixelLinear(4, 6), torch.nn.Linear(4, 6)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(layer(x), plain(x))
