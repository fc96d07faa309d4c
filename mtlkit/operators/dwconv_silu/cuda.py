"""dwconv_silu by the CUDA kernels."""

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


def _tensors(inputs: Inputs) -> tuple[tuple, list[Tensor]]:
    """What the kernels of both directions take, and the tensors that must live until they are launched."""
    x, weight, bias = inputs
    weight, bias = as_float(weight[:, 0]), None if bias is None else as_float(bias)
    return (argument(x), argument(weight), argument(bias)), [weight, bias]


def forward(inputs: Inputs, _options: NoOptions, _save: bool) -> tuple[Tensor]:
    """Y."""
    x = inputs.x
    y = new_output(x)
    with launching(x) as stream:
        tensors, _alive = _tensors(inputs)
        check_cuda(_native.C.cuda_dwconv_silu_forward(tuple(x.shape), tensors, stream, argument(y)))
    return (y,)


def backward(inputs: Inputs, _options: NoOptions, _kept, grads, _wanted) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight and bias."""
    x, weight = inputs.x, inputs.weight
    dx, taps = new_output(x), TAPS * TAPS
    with launching(x) as stream:
        tensors, _alive = _tensors(inputs)
        parts = _native.C.cuda_dwconv_silu_parts(*x.shape, _launch.gpu(x.device)[0])
        partials = torch.empty(parts, x.shape[1], taps + 1, dtype=torch.float32, device=x.device)
        outputs = (argument(grads[0]), argument(dx), address(partials), parts)
        check_cuda(_native.C.cuda_dwconv_silu_backward(tuple(x.shape), tensors, stream, *outputs))
    dweight, dbias = partials.sum(0).split((taps, 1), -1)
    return dx, dweight.reshape(weight.shape), dbias[:, 0]
