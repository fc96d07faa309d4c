"""dwconv_silu by the Triton kernels, which are loaded at the first call."""

from collections.abc import Sequence

from torch import Tensor

from mtlkit.operators._launch import single_precision_only
from mtlkit.operators._operator import NoOptions
from mtlkit.operators.dwconv_silu.signature import Inputs


def supports(inputs: Inputs, _options: NoOptions) -> str | None:
    """Calls without float64."""
    return single_precision_only(inputs)


def forward(inputs: Inputs, _options: NoOptions, _save: bool) -> tuple[Tensor]:
    """Y."""
    from mtlkit.kernels import dwconv_silu as kernels

    return (kernels.forward(*inputs),)


def backward(
    inputs: Inputs, _options: NoOptions, _kept: object, grads: Sequence[Tensor], _wanted: object
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight and bias."""
    from mtlkit.kernels import dwconv_silu as kernels

    return kernels.backward(grads[0], *inputs)
