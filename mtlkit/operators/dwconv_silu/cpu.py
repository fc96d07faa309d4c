"""dwconv_silu by the C++ kernels."""

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import address, argument, check, compute_dtype, fresh
from mtlkit.operators._operator import NoOptions
from mtlkit.operators.dwconv_silu.signature import Inputs, new_output


def supports(_inputs: Inputs, _options: NoOptions) -> None:
    """Every call."""


def _arguments(inputs: Inputs) -> tuple:
    """What the kernels of both directions take first."""
    x, weight, bias = inputs
    tensors = (argument(x), argument(weight[:, 0]), argument(bias))
    return tuple(x.shape), tensors, x.dtype == torch.float64, torch.get_num_threads()


def forward(inputs: Inputs, _options: NoOptions, _save: bool) -> tuple[Tensor]:
    """Y."""
    y = fresh(new_output(inputs.x))
    check(_native.C.dwconv_silu_forward(*_arguments(inputs), argument(y)))
    return (y,)


def backward(inputs: Inputs, _options: NoOptions, _kept, grads, _wanted) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight and bias."""
    x, weight, bias = inputs
    dx, dtype = fresh(new_output(x)), compute_dtype(x)
    dweight, dbias = (None if t is None else torch.empty(t.shape, dtype=dtype) for t in (weight, bias))
    outputs = (argument(grads[0]), argument(dx), address(dweight), address(dbias))
    check(_native.C.dwconv_silu_backward(*_arguments(inputs), *outputs))
    return dx, dweight, dbias
