"""norm_gate by the CUDA kernels."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators import _launch
from mtlkit.operators._launch import address, argument, as_float, check_cuda, launching, single_precision_only
from mtlkit.operators.norm_gate.signature import Inputs, Options, new_output, rows


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls without float64."""
    return limit(inputs.x.shape[-1], inputs)


def limit(_channels: int, tensors: Iterable[Tensor | None]) -> str | None:
    """Why the kernels cannot run a call with these tensors; None if they can."""
    return single_precision_only(tensors)


def _arguments(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, z: Tensor | None, eps: float, stream: int
) -> dict[str, object]:
    """The arguments shared by the forward and backward kernels: rows, and parameters in float32."""
    return {
        "sizes": x.shape,
        "x": argument(x),
        "weight": address(weight),
        "bias": address(bias),
        "z": argument(z),
        "eps": eps,
        "stream": stream,
    }


def forward(inputs: Inputs, options: Options, _save: bool) -> tuple[Tensor]:
    """Y."""
    return (forward_of_sum(inputs, None, options, inputs.x.dtype),)


def forward_of_sum(inputs: Inputs, addend: Tensor | None, options: Options, out_dtype: torch.dtype) -> Tensor:
    """The output for x + addend, without writing that sum; for x if there is no addend."""
    x, weight, bias, z = inputs
    out = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    with launching(x) as stream:
        weight, bias = (None if t is None else as_float(t) for t in (weight, bias))
        x, addend, z = rows(x), rows(addend), None if z is None else rows(z.to(out_dtype))
        arguments = _arguments(x, weight, bias, z, options.eps, stream)
        status = _native.C.cuda_norm_gate_forward(**arguments, addend=argument(addend), out=argument(rows(out)))
        check_cuda(status)
    return out


def backward(
    inputs: Inputs, options: Options, _kept: object, grads: Sequence[Tensor], _wanted: object
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight, bias and z."""
    x, weight, bias, z = inputs
    dx, dz = new_output(x), None if z is None else torch.empty(z.shape, dtype=x.dtype, device=x.device)
    with launching(x) as stream:
        weight, bias = (None if t is None else as_float(t) for t in (weight, bias))
        dout, x, z = rows(grads[0]), rows(x), None if z is None else rows(z.to(x.dtype))
        blocks = _native.C.cuda_norm_gate_blocks(sizes=x.shape, multiprocessors=_launch.gpu(x.device)[0])
        partials = torch.empty(blocks, 2, x.shape[1], dtype=torch.float32, device=x.device)
        arguments = _arguments(x, weight, bias, z, options.eps, stream)
        status = _native.C.cuda_norm_gate_backward(
            **arguments,
            dout=argument(dout),
            dx=argument(rows(dx)),
            dz=argument(rows(dz)),
            partials=address(partials),
            blocks=blocks,
        )
        check_cuda(status)
    dweight, dbias = (part.clone() for part in partials.sum(0))  # results of an operator must not share memory
    return dx, dweight, dbias, dz
