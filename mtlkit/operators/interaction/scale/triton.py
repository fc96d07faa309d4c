"""scale by the Triton kernels, which are loaded at the first call."""

from collections.abc import Sequence

from torch import Tensor

from mtlkit.operators._launch import single_precision_only


def supports(inputs: tuple[Tensor, Tensor], _options: object) -> str | None:
    """Calls without float64."""
    return single_precision_only(inputs)


def forward(inputs: tuple[Tensor, Tensor], _options: object, _save: bool) -> tuple[Tensor]:
    """Y."""
    from mtlkit.kernels import interaction as kernels

    return (kernels.scale_forward(*inputs),)


def gradient_of_factors(dy: Tensor, x: Tensor, _factors: Tensor) -> Tensor:
    """The sum of dy x over the pixels, (B, C)."""
    from mtlkit.kernels import interaction as kernels

    return kernels.scale_backward(dy.to(x.dtype), x)


def backward(
    inputs: tuple[Tensor, Tensor], options: object, _kept: object, grads: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of map and factors."""
    (x, factors), (dy,) = inputs, grads
    dx = forward((dy, factors), options, False)[0] if wanted[0] else None
    return dx, gradient_of_factors(dy, x, factors) if wanted[1] else None
