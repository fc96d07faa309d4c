"""selective_scan by the Triton kernels, which are loaded at the first call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit.operators._launch import few_states, single_precision_only
from mtlkit.operators.selective_scan.signature import Inputs, Options


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls with at most MAX_STATES states, without float64."""
    return few_states(inputs.A.shape[1]) or single_precision_only(inputs)


def room(inputs: Inputs, _options: Options) -> tuple[Tensor]:
    """The states saved for the backward pass, unset."""
    from mtlkit.kernels import selective_scan as kernels

    batch, tokens, *others = kernels.checkpoint_shape(inputs.u, inputs.A)
    return (torch.empty(batch, tokens, *others, dtype=torch.float32, device=inputs.u.device),)


def forward(inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
    """The output, the last state, and the states saved for the backward pass."""
    from mtlkit.kernels import selective_scan as kernels

    out, last, checkpoints = kernels.forward(*inputs, *options, save)
    return (out, last, checkpoints) if save else (out, last)


def backward(
    inputs: Inputs, options: Options, kept: Sequence[Tensor], grads: tuple[Tensor, Tensor | None], _wanted: object
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs in their order."""
    from mtlkit.kernels import selective_scan as kernels

    return kernels.backward(*grads, *inputs, kept[0], *options)
