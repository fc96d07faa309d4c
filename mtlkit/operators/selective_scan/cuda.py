"""selective_scan by the CUDA kernels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators import _launch
from mtlkit.operators._launch import (
    Argument,
    address,
    argument,
    as_float,
    check_cuda,
    few_states,
    launching,
    single_precision_only,
)
from mtlkit.operators.selective_scan.signature import (
    Inputs,
    Options,
    Sizes,
    new_outputs,
    rows,
    sizes_of,
    token_last,
)


class Order(NamedTuple):
    """The order and initial state of each group of channels; tensors as in Inputs, but split into groups of channels.

    u, delta and their gradients are (B, G, D / G, L), B and C vary, and z is None.
    """

    table: Tensor | None  # (G, T) or (B, G, T), int32, dense: the token at each step; all tokens in order if None
    seq_idx: Tensor | None  # (B, L), int32, dense: where it changes, the state restarts at zero
    initial_state: Tensor | None  # (B, D, N), float32, dense: of the first sequence visited; zeros if None


def plan_of(sizes: Sizes, device: torch.device, constant: bool) -> Any:
    """SelectiveScanPlan of csrc/cuda/selective_scan/selective_scan.h; `constant`: whether B or C does not vary."""
    return _native.C.cuda_selective_scan_plan(sizes=sizes, constant=constant, gpu=_launch.gpu(device))


def _plan(sizes: Sizes, inputs: Inputs) -> Any:
    return plan_of(sizes, inputs.u.device, inputs.B.dim() == 2 or inputs.C.dim() == 2)


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls with at most MAX_STATES states, without float64."""
    return few_states(inputs.A.shape[1]) or single_precision_only(inputs)


def checkpoints_of(batch: int, steps: int, channels: int, plan: Any, device: torch.device) -> Tensor:
    """One state for each tile of tokens, uninitialised."""
    tiles = (steps + plan.tile_tokens - 1) // plan.tile_tokens
    return torch.empty(batch, tiles, channels, plan.padded_states, dtype=torch.float32, device=device)


def room(inputs: Inputs, _options: Options) -> tuple[Tensor, Tensor]:
    """One state for each tile of tokens, and the output before the gate."""
    batch, channels, length = inputs.u.shape
    plan = _plan(Sizes(1, 1, 1, int(inputs.A.shape[1]), 1), inputs)
    checkpoints = checkpoints_of(batch, length, channels, plan, inputs.u.device)
    return checkpoints, checkpoints.new_empty((batch, channels, length) if inputs.z is not None else (0,))


def _by_group(tensor: Tensor | None, groups: int) -> Argument | None:
    """A tensor of channels as the kernels take it, (B, G, D / G, L)."""
    found = argument(tensor)
    if tensor is None or found is None or tensor.dim() == 4:
        return found
    batch, channel, token = tensor.stride()
    return *found[:2], (batch, channel * (tensor.shape[1] // groups), channel, token)


def _arguments(
    inputs: Inputs, softplus: bool, sizes: Sizes, checkpoints: Tensor | None, plan: Any, order: Order | None
) -> tuple[dict[str, object], list[Tensor | None]]:
    """The arguments shared by the forward and backward kernels, and the tensors to keep alive until the launch."""
    u, delta, A, B, C, D, z, delta_bias = inputs
    many = sizes.batch * plan.chunks * sizes.channels if plan.chunks > 1 else 0
    ends = torch.empty(many, plan.padded_states, dtype=torch.float32, device=u.device)
    steps = torch.empty(many, dtype=torch.float32, device=u.device)
    A, D, delta_bias = (None if t is None else as_float(t) for t in (A, D, delta_bias))
    table, seq_idx, initial = order or Order(None, None, None)
    arguments = {
        "sizes": sizes,
        "u": _by_group(u, sizes.groups),
        "delta": _by_group(delta, sizes.groups),
        "A": address(A),
        "B": rows(B),
        "C": rows(C),
        "variable_B": B.dim() > 2,
        "variable_C": C.dim() > 2,
        "D": address(D),
        "delta_bias": address(delta_bias),
        "delta_softplus": softplus,
        "checkpoints": address(checkpoints),
        "by_token": order is not None,
        "tokens": u.shape[-1],
        "table": address(table),
        "table_stride": table.stride(0) if table is not None and table.dim() == 3 else 0,
        "sequences": address(seq_idx),
        "initial_state": address(initial),
        "plan": plan,
        "ends": address(ends),
        "steps": address(steps),
        "z": _by_group(z, sizes.groups),
    }
    return arguments, [A, D, delta_bias, ends, steps]


def launch_forward(
    inputs: Inputs,
    softplus: bool,
    sizes: Sizes,
    out: Tensor,
    last: Tensor,
    checkpoints: Tensor | None,
    ungated: Tensor | None,
    order: Order | None = None,
) -> None:
    """Computes the output, the last state, (B, D, N) in float32, and what is saved for backward.

    `sizes` counts the visited tokens; other tokens of `out` are not written.
    """
    plan = _plan(sizes, inputs)
    with launching(inputs.u) as stream:
        arguments, _alive = _arguments(inputs, softplus, sizes, checkpoints, plan, order)
        status = _native.C.cuda_selective_scan_forward(
            **arguments,
            out=_by_group(out, sizes.groups),
            ungated=address(ungated),
            last_state=address(last),
            stream=stream,
        )
        check_cuda(status)


def forward(inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
    """The output, the last state, the states kept for the backward pass, and the output before the gate."""
    out, last = new_outputs(inputs, options)
    kept = room(inputs, options) if save else ()
    launch_forward(inputs, options.delta_softplus, sizes_of(inputs), out, last, *(kept or (None, None)))
    return out, last, *kept


def launch_backward(
    inputs: Inputs,
    softplus: bool,
    sizes: Sizes,
    checkpoints: Tensor,
    ungated: Tensor | None,
    dout: Tensor,
    dlast: Tensor | None,
    du: Tensor,
    order: Order | None = None,
    dinitial: Tensor | None = None,
) -> tuple[Any, ...]:
    """The gradients of `inputs`; those of B and C, where they vary, are (B, G, L, N).

    The gradient of u goes to `du`, that of the initial state to `dinitial`.
    """
    u, delta, _, B, C, _, z, _ = inputs
    plan, (batch, channels, steps, states, groups) = _plan(sizes, inputs), sizes
    tokens = u.shape[-1]
    everywhere = torch.empty if steps == tokens else torch.zeros
    varies = B.dim() > 2 or C.dim() > 2
    ddelta = torch.empty_like(delta) if steps == tokens else torch.zeros_like(delta)
    dz = None if z is None else torch.empty_like(z)
    shape = (plan.group_blocks if varies else 0, batch, groups, tokens, 2 * states)
    drows = everywhere(shape, dtype=torch.float32, device=u.device)
    dparameters = drows.new_empty(batch * plan.chunks, channels, 3 * states + 2)
    with launching(u) as stream:
        arguments, _alive = _arguments(inputs, softplus, sizes, checkpoints, plan, order)
        status = _native.C.cuda_selective_scan_backward(
            **arguments,
            ungated=address(ungated),
            dout=_by_group(dout, groups),
            dlast_state=argument(dlast),
            du=_by_group(du, groups),
            ddelta=_by_group(ddelta, groups),
            dz=_by_group(dz, groups),
            drows=address(drows),
            dparameters=address(dparameters),
            dinitial_state=address(dinitial),
            stream=stream,
        )
        check_cuda(status)
    # in a fixed order, as in all of torch's sums over a dimension
    dA, dB, dC, dD, dbias = dparameters.sum(0).split((states, states, states, 1, 1), -1)
    if varies:
        varying_B, varying_C = drows.sum(0).split(states, -1)
        dB = varying_B if B.dim() > 2 else dB
        dC = varying_C if C.dim() > 2 else dC
    return du, ddelta, dA, dB, dC, dD[:, 0], dz, dbias[:, 0]


def backward(
    inputs: Inputs, options: Options, kept: Sequence[Tensor], grads: tuple[Tensor, Tensor | None], _wanted: object
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs in their order."""
    sizes, du = sizes_of(inputs), torch.empty_like(inputs.u)
    _, ddelta, dA, dB, dC, *others = launch_backward(
        inputs, options.delta_softplus, sizes, kept[0], kept[1], grads[0], grads[1], du
    )
    return du, ddelta, dA, token_last(dB, inputs.B), token_last(dC, inputs.C), *others
