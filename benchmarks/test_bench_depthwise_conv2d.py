"""depthwise_conv2d at the shapes of MBDI's encoder and decoder and of ConvNeXt, compared with F.conv2d.

PyTorch gets the same channels-last image, and the contiguous one that is its default.
"""

import pytest
import torch
import torch.nn.functional as F
from mamba_workloads import Row, measured, moved, normal
from providers import BOTH, FORWARD
from torch import Tensor

from mtlkit.ops import depthwise_conv2d

# (B, D, H, W), window, stride, dilation
SHAPES = {
    "mbdi_112_k3": ((2, 144, 112, 112), 3, 1, 1),
    "mbdi_112_k3_stride2": ((2, 144, 112, 112), 3, 2, 1),
    "mbdi_56_k3_dilation4": ((2, 192, 56, 56), 3, 1, 4),
    "mbdi_28_k5": ((2, 336, 28, 28), 5, 1, 1),
    "mbdi_14_k5": ((2, 960, 14, 14), 5, 1, 1),
    "mbdi_7_k5": ((2, 1632, 7, 7), 5, 1, 1),
    "convnext_56_k7": ((2, 96, 56, 56), 7, 1, 1),
}


def ours(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    return depthwise_conv2d(x, weight, stride=stride, dilation=dilation)


def eager(x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    return F.conv2d(x, weight, None, stride, dilation * (weight.shape[-1] - 1) // 2, dilation, x.shape[1])


PROVIDERS = {"mtlkit": ours, "eager": eager, "eager_contiguous": eager}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("direction", [FORWARD, BOTH])
@pytest.mark.parametrize("shape_name", SHAPES)
def test_depthwise_conv2d(shape_name, direction, provider, measure) -> None:
    size, kernel, stride, dilation = SHAPES[shape_name]
    layout = torch.contiguous_format if provider == "eager_contiguous" else torch.channels_last
    tensors = {
        "x": normal(*size).contiguous(memory_format=layout),
        "weight": normal(size[1], 1, kernel, kernel) / kernel,
    }
    row, exact = (
        Row(lambda f=f, **given: f(**given, stride=stride, dilation=dilation), tensors)
        for f in (PROVIDERS[provider], eager)
    )
    images = 2 if direction == FORWARD else 5  # x and y; then x, dy and dx, of which y and dy shrink by the stride
    shrunk = 1 if direction == FORWARD else 2
    numbers = tensors["x"].numel() * (images - shrunk + shrunk / stride**2)
    measured(measure, "depthwise_conv2d", shape_name, direction, provider, row, exact, moved(int(numbers)))
