"""selective_scan by the CUDA kernels."""

from typing import Any

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators import _launch
from mtlkit.operators._launch import (
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


def _plan(sizes: Sizes, inputs: Inputs) -> Any:
    """SelectiveScanPlan of csrc/cuda/selective_scan/selective_scan.h."""
    constant = inputs.B.dim() == 2 or inputs.C.dim() == 2
    return _native.C.cuda_selective_scan_plan(sizes=sizes, constant=constant, gpu=_launch.gpu(inputs.u.device))


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls of few states, without float64."""
    return few_states(inputs.A.shape[1]) or single_precision_only(inputs)


def room(inputs: Inputs, _options: Options) -> tuple[Tensor, Tensor]:
    """A state for each tile of tokens, and the output before the gate."""
    batch, channels, length = inputs.u.shape
    plan = _plan(Sizes(1, 1, 1, int(inputs.A.shape[1]), 1), inputs)
    tiles = (length + plan.tile_tokens - 1) // plan.tile_tokens
    ungated = (batch, channels, length) if inputs.z is not None else (0,)
    options = {"dtype": torch.float32, "device": inputs.u.device}
    return torch.empty(batch, tiles, channels, plan.padded_states, **options), torch.empty(ungated, **options)


def _arguments(
    inputs: Inputs, options: Options, checkpoints: Tensor | None, plan: Any
) -> tuple[dict[str, object], list]:
    """What the kernels of both directions take, and the tensors that must live until they are launched."""
    u, delta, A, B, C, D, z, delta_bias = inputs
    many = u.shape[0] * plan.chunks * u.shape[1] if plan.chunks > 1 else 0
    ends = torch.empty(many, plan.padded_states, dtype=torch.float32, device=u.device)
    steps = torch.empty(many, dtype=torch.float32, device=u.device)
    A, D, delta_bias = (None if t is None else as_float(t) for t in (A, D, delta_bias))
    arguments = {
        "sizes": sizes_of(inputs),
        "u": argument(u),
        "delta": argument(delta),
        "A": address(A),
        "B": rows(B),
        "C": rows(C),
        "variable_B": B.dim() > 2,
        "variable_C": C.dim() > 2,
        "D": address(D),
        "delta_bias": address(delta_bias),
        "delta_softplus": options.delta_softplus,
        "checkpoints": address(checkpoints),
        "plan": plan,
        "ends": address(ends),
        "steps": address(steps),
        "z": argument(z),
    }
    return arguments, [A, D, delta_bias, ends, steps]


def forward(inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
    """The output, the last state, the states kept for the backward pass, and the output before the gate."""
    out, last = new_outputs(inputs, options)
    kept = room(inputs, options) if save else ()
    checkpoints, ungated = kept or (None, None)
    plan = _plan(sizes_of(inputs), inputs)
    with launching(inputs.u) as stream:
        arguments, _alive = _arguments(inputs, options, checkpoints, plan)
        status = _native.C.cuda_selective_scan_forward(
            **arguments, out=argument(out), ungated=address(ungated), last_state=address(last), stream=stream
        )
        check_cuda(status)
    return out, last, *kept


def backward(inputs: Inputs, options: Options, kept, grads, _wanted) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs in their order."""
    u, delta, _, B, C, _, z, _ = inputs
    (checkpoints, ungated), (dout, dlast) = kept, grads
    plan, (batch, channels, length, states, groups) = _plan(sizes_of(inputs), inputs), sizes_of(inputs)
    varies = B.dim() > 2 or C.dim() > 2
    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dz = None if z is None else torch.empty_like(z)
    drows = torch.empty(
        plan.group_blocks if varies else 0, batch, groups, length, 2 * states, dtype=torch.float32, device=u.device
    )
    dparameters = drows.new_empty(batch * plan.chunks, channels, 3 * states + 2)
    with launching(u) as stream:
        arguments, _alive = _arguments(inputs, options, checkpoints, plan)
        status = _native.C.cuda_selective_scan_backward(
            **arguments,
            ungated=address(ungated),
            dout=argument(dout),
            dlast_state=argument(dlast),
            du=argument(du),
            ddelta=argument(ddelta),
            dz=argument(dz),
            drows=address(drows),
            dparameters=address(dparameters),
            stream=stream,
        )
        check_cuda(status)
    # in a fixed order, as all of torch's sums over a dimension
    dA, dB, dC, dD, dbias = dparameters.sum(0).split((states, states, states, 1, 1), -1)
    if varies:
        varying_B, varying_C = drows.sum(0).split(states, -1)
        dB = token_last(varying_B, B) if B.dim() > 2 else dB
        dC = token_last(varying_C, C) if C.dim() > 2 else dC
    return du, ddelta, dA, dB, dC, dD[:, 0], dz, dbias[:, 0]
