"""norm_gate by the C++ kernels."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import address, argument, check, compute_dtype, fresh
from mtlkit.operators.norm_gate.signature import Inputs, Options, new_output, rows


def supports(_inputs: Inputs, _options: Options) -> None:
    """Every call."""


def limit(_channels: int, _tensors: Iterable[Tensor | None]) -> None:
    """The kernels can run every call."""


def _arguments(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, z: Tensor | None, eps: float
) -> dict[str, object]:
    """The arguments shared by the forward and backward kernels."""
    return {
        "sizes": x.shape,
        "x": argument(x),
        "weight": argument(weight),
        "bias": argument(bias),
        "z": argument(z),
        "eps": eps,
        "use_double": compute_dtype(x, z) == torch.float64,
        "threads": torch.get_num_threads(),
    }


def forward(inputs: Inputs, options: Options, _save: bool) -> tuple[Tensor]:
    """Y."""
    x, weight, bias, z = inputs
    out = fresh(new_output(x))
    x, z = rows(x), rows(z)
    check(_native.C.norm_gate_forward(**_arguments(x, weight, bias, z, options.eps), out=argument(rows(out))))
    return (out,)


def backward(
    inputs: Inputs, options: Options, _kept: object, grads: Sequence[Tensor], _wanted: object
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight, bias and z."""
    x, weight, bias, z = inputs
    dx, dz = (None if t is None else fresh(new_output(t)) for t in (x, z))
    dtype = compute_dtype(x, z)
    dweight, dbias = (None if t is None else torch.empty(t.shape, dtype=dtype) for t in (weight, bias))
    dout, x, z = rows(grads[0]), rows(x), rows(z)
    status = _native.C.norm_gate_backward(
        **_arguments(x, weight, bias, z, options.eps),
        dout=argument(dout),
        dx=argument(rows(dx)),
        dz=argument(rows(dz)),
        dweight=address(dweight),
        dbias=address(dbias),
    )
    check(status)
    return dx, dweight, dbias, dz
