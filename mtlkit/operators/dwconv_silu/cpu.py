"""dwconv_silu by the C++ kernels of depthwise_conv2d."""

from collections.abc import Sequence

from torch import Tensor

from mtlkit.operators._operator import NoOptions
from mtlkit.operators.depthwise_conv2d import cpu
from mtlkit.operators.depthwise_conv2d.signature import Inputs as ConvInputs
from mtlkit.operators.depthwise_conv2d.signature import Options
from mtlkit.operators.dwconv_silu.signature import Inputs

_OPTIONS = Options(stride=1, padding=(1, 1, 1, 1), dilation=1, silu=True)


def supports(_inputs: Inputs, _options: NoOptions) -> None:
    """Every call."""


def forward(inputs: Inputs, _options: NoOptions, save: bool) -> tuple[Tensor]:
    """Y."""
    return cpu.forward(ConvInputs(*inputs), _OPTIONS, save)


def backward(
    inputs: Inputs, _options: NoOptions, kept: Sequence[Tensor], grads: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight and bias."""
    return cpu.backward(ConvInputs(*inputs), _OPTIONS, kept, grads, wanted)
