"""directional_scan by the Triton kernels of selective_scan, which are loaded at the first call."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit.operators._launch import few_states, single_precision_only
from mtlkit.operators.directional_scan._as_selective_scan import (
    gradients,
    input_gradient,
    merged,
    output_gradient,
    outputs_of,
    scan_of,
)
from mtlkit.operators.directional_scan.signature import Inputs, Options


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls with at most MAX_STATES states, without float64."""
    return few_states(inputs.A_logs.shape[1]) or single_precision_only(inputs)


def room(inputs: Inputs, options: Options) -> tuple[Tensor]:
    """The states saved for the backward pass, unset."""
    from mtlkit.kernels import selective_scan as kernels

    batch, *others = kernels.checkpoint_shape(inputs.u, inputs.A_logs, options.steps)
    return (inputs.u.new_empty((batch, *others), dtype=torch.float32),)


def forward(inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
    """The output, the last state, and the states saved for the backward pass."""
    from mtlkit.kernels import selective_scan as kernels

    scan = scan_of(inputs, options)
    *arguments, D, delta_bias, table, seq_idx, initial = scan
    order = kernels.Order(table, seq_idx, initial)
    y, parts = outputs_of(inputs, options, scan)
    _, last, checkpoints = kernels.forward(*arguments, D, None, delta_bias, True, save, order, parts)
    outputs = merged(parts, y), last.unflatten(1, inputs.dt_weight.shape[:2])
    return (*outputs, checkpoints) if save else outputs


@torch.no_grad()  # unset only in a second derivative, which raises
def backward(
    inputs: Inputs, options: Options, kept: Sequence[Tensor], grads: tuple[Tensor, Tensor | None], _wanted: object
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs in their order."""
    from mtlkit.kernels import selective_scan as kernels

    scan = scan_of(inputs, options)
    *arguments, D, delta_bias, table, seq_idx, initial = scan
    du, parts = input_gradient(inputs, options, scan)
    dinitial = None if initial is None else torch.empty_like(initial)
    dy, dlast = output_gradient(grads[0], scan), grads[1]
    _, ddelta, dA, dB, dC, dD, _, dbias = kernels.backward(
        dy,
        dlast,
        *arguments,
        D,
        None,
        delta_bias,
        kept[0],
        True,
        kernels.Order(table, seq_idx, initial),
        parts,
        dinitial,
    )
    return gradients(inputs, scan, merged(parts, du), ddelta, dA, dB, dC, dD, dbias, dinitial)
