"""scale by the C++ kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import address, check, fresh
from mtlkit.operators.interaction.maps import new_map, rows_argument, rows_like, rows_of


def supports(_inputs: object, _options: object) -> None:
    """Every call."""


def _arguments(x: Tensor, rows: Tensor, factors: Tensor) -> dict[str, object]:
    """The arguments shared by the forward and backward kernels."""
    return {
        "use_double": factors.dtype == torch.float64,
        "threads": torch.get_num_threads(),
        "sizes": (*x.shape, 0),
        "x": rows_argument(rows),
    }


def forward(inputs: tuple[Tensor, Tensor], _options: object, _save: bool) -> tuple[Tensor]:
    """Y."""
    x, factors = inputs
    y, rows, factors = fresh(new_map(x)), x if x.is_contiguous() else rows_of(x), factors.contiguous()
    arguments = _arguments(x, rows, factors)
    check(_native.C.interaction_scale_forward(**arguments, factors=address(factors), y=rows_argument(y)))
    return (y,)


def gradient_of_factors(dy: Tensor, x: Tensor, factors: Tensor) -> Tensor:
    """The sum of dy x over the pixels, (B, C)."""
    dfactors = torch.empty(factors.shape, dtype=factors.dtype)
    if dy.dtype == x.dtype and dy.is_contiguous() and x.is_contiguous():  # the common case, without views
        rows, dy_rows = x, dy
    else:
        rows = rows_of(x)
        dy_rows = rows_like(dy.to(x.dtype), rows)
    arguments = _arguments(x, rows, factors)
    check(_native.C.interaction_scale_backward(**arguments, dy=rows_argument(dy_rows), dfactors=address(dfactors)))
    return dfactors


def backward(
    inputs: tuple[Tensor, Tensor], options: object, _kept: object, grads: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of map and factors."""
    (x, factors), (dy,) = inputs, grads
    dx = forward((dy, factors), options, False)[0] if wanted[0] else None
    return dx, gradient_of_factors(dy, x, factors) if wanted[1] else None
