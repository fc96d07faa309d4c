"""ss2d by the Triton kernels, which are loaded at the first call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit.operators._launch import few_states, single_precision_only
from mtlkit.operators.ss2d.signature import Inputs, Options


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls with at most MAX_STATES states, without float64."""
    return few_states(inputs.A_logs.shape[1]) or single_precision_only(inputs)


def room(inputs: Inputs, _options: Options) -> tuple[Tensor]:
    """The states saved for the backward pass, unset."""
    from mtlkit.kernels import ss2d as kernels

    batch, directions, tokens, *others = kernels.checkpoint_shape(inputs.u, inputs.A_logs)
    shape = (batch, directions, tokens, *others)
    return (torch.empty(shape, dtype=torch.float32, device=inputs.u.device),)


def forward(inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
    """y, and the states saved for the backward pass."""
    from mtlkit.kernels import ss2d as kernels

    y, checkpoints = kernels.forward(*inputs, *options, save)
    return (y, checkpoints) if save else (y,)


def backward(
    inputs: Inputs, _options: Options, kept: Sequence[Tensor], grads: Sequence[Tensor], _wanted: object
) -> tuple[Tensor, ...]:
    """The gradients of the inputs in their order."""
    from mtlkit.kernels import ss2d as kernels

    return kernels.backward(*grads, *inputs, *kept)
