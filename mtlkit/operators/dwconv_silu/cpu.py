"""dwconv_silu by the C++ kernels."""

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import address, argument, check, compute_dtype, fresh
from mtlkit.operators._operator import NoOptions
from mtlkit.operators.dwconv_silu.signature import Inputs, new_output


def supports(_inputs: Inputs, _options: NoOptions) -> None:
    """Every call."""


def _arguments(inputs: Inputs) -> dict[str, object]:
    """What the kernels of both directions take."""
    x, weight, bias = inputs
    return {
        "sizes": x.shape,
        "x": argument(x),
        "weight": argument(weight[:, 0]),
        "bias": argument(bias),
        "use_double": x.dtype == torch.float64,
        "threads": torch.get_num_threads(),
    }


def forward(inputs: Inputs, _options: NoOptions, _save: bool) -> tuple[Tensor]:
    """Y."""
    y = fresh(new_output(inputs.x))
    check(_native.C.dwconv_silu_forward(**_arguments(inputs), y=argument(y)))
    return (y,)


def backward(inputs: Inputs, _options: NoOptions, _kept, grads, _wanted) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight and bias."""
    x, weight, bias = inputs
    dx, dtype = fresh(new_output(x)), compute_dtype(x)
    dweight, dbias = (None if t is None else torch.empty(t.shape, dtype=dtype) for t in (weight, bias))
    status = _native.C.dwconv_silu_backward(
        **_arguments(inputs), dy=argument(grads[0]), dx=argument(dx), dweight=address(dweight), dbias=address(dbias)
    )
    check(status)
    return dx, dweight, dbias
