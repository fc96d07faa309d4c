"""directional_scan by the CUDA kernels of selective_scan."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit.operators._launch import few_states, single_precision_only
from mtlkit.operators.directional_scan._as_selective_scan import (
    Scan,
    gradients,
    input_gradient,
    merged,
    output_gradient,
    outputs_of,
    scan_of,
)
from mtlkit.operators.directional_scan.signature import Inputs, Options
from mtlkit.operators.selective_scan import cuda as kernels
from mtlkit.operators.selective_scan.signature import Inputs as Arguments
from mtlkit.operators.selective_scan.signature import Sizes


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls with at most MAX_STATES states, without float64."""
    return few_states(inputs.A_logs.shape[1]) or single_precision_only(inputs)


def _sizes(inputs: Inputs, options: Options) -> Sizes:
    """The sizes of the selective_scan whose channel groups are the directions."""
    directions, channels, _ = inputs.dt_weight.shape
    return Sizes(inputs.u.shape[0], directions * channels, options.steps, inputs.A_logs.shape[1], directions)


def _arguments(scan: Scan) -> tuple[Arguments, kernels.Order]:
    """The arguments of selective_scan, and the order."""
    u, delta, A, B, C, D, delta_bias, *order = scan
    return Arguments(u, delta, A, B, C, D, None, delta_bias), kernels.Order(*order)


def room(inputs: Inputs, options: Options) -> tuple[Tensor]:
    """One state for each tile of steps, uninitialised."""
    states = int(inputs.A_logs.shape[1])
    plan = kernels.plan_of(Sizes(1, 1, 1, states, 1), inputs.u.device, constant=False)
    batch, channels, steps, *_ = _sizes(inputs, options)
    return (kernels.checkpoints_of(batch, steps, channels, plan, inputs.u.device),)


def forward(inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
    """The output, the last state, and the states saved for the backward pass."""
    scan = scan_of(inputs, options)
    arguments, order = _arguments(scan)
    y, parts = outputs_of(inputs, options, scan)
    last = scan.A.new_empty(inputs.u.shape[0], *inputs.dt_weight.shape[:2], scan.A.shape[1])
    checkpoints = room(inputs, options)[0] if save else None
    kernels.launch_forward(arguments, True, _sizes(inputs, options), parts, last, checkpoints, None, order)
    outputs = merged(parts, y), last
    return outputs if checkpoints is None else (*outputs, checkpoints)


@torch.no_grad()  # unset only in a second derivative, which raises
def backward(
    inputs: Inputs, options: Options, kept: Sequence[Tensor], grads: tuple[Tensor, Tensor | None], _wanted: object
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs in their order."""
    scan = scan_of(inputs, options)
    arguments, order = _arguments(scan)
    du, parts = input_gradient(inputs, options, scan)
    dinitial = None if order.initial_state is None else torch.empty_like(order.initial_state)
    dy, dlast = output_gradient(grads[0], scan), None if grads[1] is None else grads[1].flatten(1, 2)
    _, ddelta, dA, dB, dC, dD, _, dbias = kernels.launch_backward(
        arguments, True, _sizes(inputs, options), kept[0], None, dy, dlast, parts, order, dinitial
    )
    dB, dC = dB.transpose(-1, -2), dC.transpose(-1, -2)  # (B, K, N, L)
    return gradients(inputs, scan, merged(parts, du), ddelta, dA, dB, dC, dD, dbias, dinitial)
