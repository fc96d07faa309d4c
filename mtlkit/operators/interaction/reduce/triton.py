"""reduce by the Triton kernels, which are loaded at the first call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit.operators._launch import single_precision_only
from mtlkit.operators.interaction.reduce.signature import Inputs, Options


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls without float64."""
    return single_precision_only(inputs)


def room(inputs: Inputs, _options: Options) -> tuple[Tensor, Tensor]:
    """The largest logit and the sum of the softmax, (B, 2), and the signs of the projection; empty if not needed."""
    from mtlkit.kernels import interaction as kernels

    x, weight, _, attn = inputs
    softmax = torch.empty(x.shape[0], 2 * (attn is not None), dtype=torch.float32, device=x.device)
    return softmax, kernels.room_for_signs(x, weight, attn, True)


def forward(inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
    """Mean, variance, energy and pooled projection, and what the backward pass needs."""
    from mtlkit.kernels import interaction as kernels

    found = kernels.reduce_forward(*inputs, options.energy, save)
    return found if save else found[:4]


def backward(
    inputs: Inputs, options: Options, kept: Sequence[Tensor], grads: Sequence[Tensor | None], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of map and projection."""
    return backward_with(inputs, options, kept, grads, None, None, wanted)


def backward_with(
    inputs: Inputs,
    options: Options,
    kept: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    dy: Tensor | None,
    factors: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Like `backward`, and adds dy times the factors (B, C) to the gradient of the map in the same pass."""
    from mtlkit.kernels import interaction as kernels

    dmean, dvariance, denergy, dpooled = (None if g is None else g.to(torch.float32) for g in grads)
    denergy = denergy if options.energy else None
    dpooled = dpooled if inputs.weight is not None else None
    if dpooled is None and not wanted[0]:
        return (None,) * len(inputs)
    return kernels.reduce_backward(*inputs, *kept, dmean, dvariance, denergy, dpooled, dy, factors, wanted[0])
