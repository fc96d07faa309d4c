"""Depthwise convolutions on a CPU: recognised by their groups, and replaced where mtlkit's kernel is faster.

Replaced are windows of 3, 5 and 7 with stride 1, or with stride 2 and no dilation, from 16 channels on. The gain is in
the backward: for 5 x 5, 7 x 7 and dilated windows it is several times as fast as PyTorch's, for 3 x 3 in channels-last
about as fast. benchmarks/test_bench_depthwise_conv2d.py measures it.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtlkit import ops
from mtlkit._accelerate._share import Plan, Shared, check_parameters, kind

WINDOWS = (3, 5, 7)
LEAST_CHANNELS = 16
SETTINGS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "transposed",
    "output_padding",
    "groups",
    "padding_mode",
    "_reversed_padding_repeated_twice",
)


def _pads_as_tensorflow(module: nn.Module) -> bool:
    return type(module).__module__.startswith("timm.") and kind(module) == "Conv2dSame"


def resembles(module: nn.Module) -> bool:
    """Returns whether it is a depthwise convolution on a CPU that the kernel supports; others are not reported."""
    if type(module) is not nn.Conv2d and not _pads_as_tensorflow(module):
        return False
    assert isinstance(module, nn.Conv2d)
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    if module.padding_mode != "zeros" or any(len(set(pair)) > 1 for pair in (kernel, stride, dilation)):
        return False
    served = kernel[0] in WINDOWS and (stride[0] == 1 or (stride[0] == 2 and dilation[0] == 1))
    padding = module.padding
    fits = isinstance(padding, str) or max(padding) <= dilation[0] * (kernel[0] - 1)
    depthwise = module.groups == module.in_channels == module.out_channels >= LEAST_CHANNELS
    return served and fits and depthwise and module.weight.device.type == "cpu"


def plan(module: nn.Module) -> Plan:
    """Returns how it can be replaced."""
    assert isinstance(module, nn.Conv2d)
    check_parameters(module, {"weight", "bias"}, {"weight"}, "a convolution")
    generator = torch.Generator().manual_seed(0)
    values = {name: torch.randn(p.shape, generator=generator) for name, p in module.named_parameters()}
    reach = module.dilation[0] * (module.kernel_size[0] - 1)
    image = torch.randn(1, module.in_channels, reach + 5, reach + 2, generator=generator)
    return Plan(values, [((image,), [lambda: SharedDepthwise(module)])])


def _for_others() -> bool:
    """Returns whether tracing, compilation or a transform of torch.func needs PyTorch's own operation."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    torch_c: Any = torch._C
    return torch_c._is_tracing() or torch_c._are_functorch_transforms_active()


class SharedDepthwise(Shared, nn.Conv2d):
    """Replaces a depthwise convolution of PyTorch, or of timm with TensorFlow's padding.

    Args:
        original: the replaced module, which `restore` puts back.
    """

    def __init__(self, original: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        for name in SETTINGS:
            setattr(self, name, getattr(original, name))
        self._parameters.update(original._parameters)
        self.same = _pads_as_tensorflow(original) or original.padding == "same"
        self.form = f"depthwise convolution, {self.kernel_size[0]} x {self.kernel_size[1]}"
        self._stand_in_for(original)

    def _sides(self, x: Tensor) -> tuple[int, int, int, int]:
        """Returns the padding in the order of F.pad."""
        if not self.same:
            rows, columns = (0, 0) if isinstance(self.padding, str) else self.padding
            return columns, columns, rows, rows
        reach, stride = self.dilation[0] * (self.kernel_size[0] - 1), self.stride[0]
        sides: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            missing = (-(-size // stride) - 1) * stride + reach + 1 - size
            missing = missing if missing > 0 else 0
            sides += [missing // 2, missing - missing // 2]
        return sides[0], sides[1], sides[2], sides[3]

    def forward(self, input: Tensor) -> Tensor:
        """Convolves each channel: (B, C, H, W) to (B, C, H', W')."""
        x, stride, dilation = input, self.stride[0], self.dilation[0]
        if x.dim() != 4 or x.device.type != "cpu" or _for_others():
            left, right, top, bottom = self._sides(x)
            if left != right or top != bottom:
                x, left, top = F.pad(x, (left, right, top, bottom)), 0, 0
            return F.conv2d(x, self.weight, self.bias, stride, (top, left), dilation, self.groups)
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        sides = self._sides(x)
        return ops.depthwise_conv2d(x, self.weight, self.bias, stride=stride, padding=sides, dilation=dilation)
