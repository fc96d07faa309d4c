"""scale by the CUDA kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators import _launch
from mtlkit.operators._launch import address, argument, as_float, check_cuda, launching, single_precision_only
from mtlkit.operators.interaction.maps import new_map, rows_like, rows_of


def supports(inputs: tuple[Tensor, Tensor], _options: object) -> str | None:
    """Calls without float64."""
    return single_precision_only(inputs)


def forward(inputs: tuple[Tensor, Tensor], _options: object, _save: bool) -> tuple[Tensor]:
    """Y."""
    x, factors = inputs
    y = new_map(x)
    with launching(x) as stream:
        rows, factors = rows_of(x), as_float(factors)
        status = _native.C.cuda_interaction_scale(
            sizes=(*x.shape, 0), x=argument(rows), factors=address(factors), y=argument(y.flatten(2)), stream=stream
        )
        check_cuda(status)
    return (y,)


def gradient_of_factors(dy: Tensor, x: Tensor, _factors: Tensor) -> Tensor:
    """The sum of dy x over the pixels, (B, C)."""
    B, C, *_ = sizes = (*x.shape, 0)
    with launching(x) as stream:
        rows = rows_of(x)
        dy_rows = rows_like(dy.to(x.dtype), rows)
        multiprocessors = _launch.gpu(x.device)[0]
        chunks = _native.C.cuda_interaction_plan(sizes=sizes, multiprocessors=multiprocessors).chunks
        parts = torch.empty(B, chunks, C, dtype=torch.float32, device=x.device)
        status = _native.C.cuda_interaction_factors(
            sizes=sizes, x=argument(rows), dy=argument(dy_rows), parts=address(parts), chunks=chunks, stream=stream
        )
        check_cuda(status)
        return parts.sum(1)


def backward(
    inputs: tuple[Tensor, Tensor], options: object, _kept: object, grads: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of map and factors."""
    (x, factors), (dy,) = inputs, grads
    dx = forward((dy, factors), options, False)[0] if wanted[0] else None
    return dx, gradient_of_factors(dy, x, factors) if wanted[1] else None
