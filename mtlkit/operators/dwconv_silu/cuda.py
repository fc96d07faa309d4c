"""dwconv_silu by the CUDA kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators import _launch
from mtlkit.operators._launch import address, argument, as_float, check_cuda, launching, single_precision_only
from mtlkit.operators._operator import NoOptions
from mtlkit.operators.dwconv_silu.signature import TAPS, Inputs, new_output


def supports(inputs: Inputs, _options: NoOptions) -> str | None:
    """Calls without float64."""
    return single_precision_only(inputs)


def _arguments(inputs: Inputs) -> tuple[dict[str, object], list[Tensor | None]]:
    """The arguments shared by the forward and backward kernels, and the tensors to keep alive until the launch."""
    x, weight, bias = inputs
    weight, bias = as_float(weight[:, 0]), None if bias is None else as_float(bias)
    arguments = {"sizes": x.shape, "x": argument(x), "weight": address(weight), "bias": address(bias)}
    return arguments, [weight, bias]


def forward(inputs: Inputs, _options: NoOptions, _save: bool) -> tuple[Tensor]:
    """Y."""
    x = inputs.x
    y = new_output(x)
    with launching(x) as stream:
        arguments, _alive = _arguments(inputs)
        check_cuda(_native.C.cuda_dwconv_silu_forward(**arguments, y=argument(y), stream=stream))
    return (y,)


def backward(
    inputs: Inputs, _options: NoOptions, _kept: object, grads: Sequence[Tensor], _wanted: object
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight and bias."""
    x, weight = inputs.x, inputs.weight
    dx, taps = new_output(x), TAPS * TAPS
    with launching(x) as stream:
        arguments, _alive = _arguments(inputs)
        parts = _native.C.cuda_dwconv_silu_parts(sizes=x.shape, multiprocessors=_launch.gpu(x.device)[0])
        partials = torch.empty(parts, x.shape[1], taps + 1, dtype=torch.float32, device=x.device)
        status = _native.C.cuda_dwconv_silu_backward(
            **arguments,
            dy=argument(grads[0]),
            dx=argument(dx),
            partials=address(partials),
            parts=parts,
            stream=stream,
        )
        check_cuda(status)
    dweight, dbias = partials.sum(0).split((taps, 1), -1)
    return dx, dweight.reshape(weight.shape), dbias[:, 0]
