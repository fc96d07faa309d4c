"""depthwise_conv2d by the C++ kernels, which also compute dwconv_silu."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import address, argument, check, compute_dtype, fresh
from mtlkit.operators.depthwise_conv2d.signature import Inputs, Options, new_map, out_size

KERNELS = (3, 5, 7)


def supports(inputs: Inputs, options: Options) -> str | None:
    """Windows of 3, 5 and 7 with stride 1, or with stride 2 without dilation."""
    kernel, (left, _, top, _) = inputs.weight.shape[-1], options.padding
    if kernel not in KERNELS:
        return f"it supports windows of 3, 5 and 7, got {kernel}"
    if options.stride > 2 or (options.stride == 2 and options.dilation > 1):
        return f"it supports stride 1, or 2 without dilation, got {options.stride} and dilation {options.dilation}"
    if max(left, top) > options.dilation * (kernel - 1):
        return f"it supports padding below the window size, got padding {options.padding}"
    return None


def _arguments(inputs: Inputs, options: Options) -> dict[str, object]:
    """The arguments shared by the forward and backward kernels."""
    x, weight, bias = inputs
    left, _, top, _ = options.padding
    return {
        "sizes": (*x.shape, weight.shape[-1], *out_size(x, weight, options)),
        "stride": options.stride,
        "dilation": options.dilation,
        "top": top,
        "left": left,
        "x": argument(x),
        "weight": argument(weight[:, 0]),
        "bias": argument(bias),
        "silu": options.silu,
        "use_double": x.dtype == torch.float64,
        "threads": torch.get_num_threads(),
    }


def forward(inputs: Inputs, options: Options, _save: bool) -> tuple[Tensor]:
    """Y."""
    y = fresh(new_map(inputs.x, *out_size(inputs.x, inputs.weight, options)))
    check(_native.C.depthwise_conv2d_forward(**_arguments(inputs, options), y=argument(y)))
    return (y,)


def backward(
    inputs: Inputs, options: Options, _kept: object, grads: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight and bias."""
    x, weight, bias = inputs
    dx = fresh(new_map(x, *x.shape[2:])) if wanted[0] else None
    dweight, dbias = (
        torch.empty(t.shape, dtype=compute_dtype(x)) if t is not None and any(wanted[1:]) else None
        for t in (weight, bias)
    )
    status = _native.C.depthwise_conv2d_backward(
        **_arguments(inputs, options),
        dy=argument(grads[0]),
        dx=argument(dx),
        dweight=address(dweight),
        dbias=address(dbias),
    )
    check(status)
    return dx, dweight, dbias
