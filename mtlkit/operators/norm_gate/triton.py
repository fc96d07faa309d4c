"""norm_gate by the Triton kernels, which are loaded at the first call."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from mtlkit.kernels.tables import MAX_ROW_CHANNELS
from mtlkit.operators._launch import single_precision_only
from mtlkit.operators.norm_gate.signature import Inputs, Options


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls without float64 whose rows fit one program."""
    return limit(inputs.x.shape[-1], inputs)


def limit(channels: int, tensors: Iterable[Tensor | None]) -> str | None:
    """Why the kernels cannot run rows of this many channels with these tensors; None if they can."""
    most = f"it supports at most {MAX_ROW_CHANNELS} channels, got {channels}" if channels > MAX_ROW_CHANNELS else None
    return single_precision_only(tensors) or most


def forward(inputs: Inputs, options: Options, _save: bool) -> tuple[Tensor]:
    """Y."""
    from mtlkit.kernels import norm_gate as kernels

    return (kernels.forward(*inputs, *options),)


def backward(
    inputs: Inputs, options: Options, _kept: object, grads: Sequence[Tensor], _wanted: object
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight, bias and z."""
    from mtlkit.kernels import norm_gate as kernels

    return kernels.backward(grads[0], *inputs, *options)
