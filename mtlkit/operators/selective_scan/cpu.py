"""selective_scan by the C++ kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import CHECKPOINT_TOKENS, address, argument, check, few_states, fresh
from mtlkit.operators.selective_scan.signature import (
    Inputs,
    Options,
    dtype_of,
    new_outputs,
    rows,
    sizes_of,
    token_last,
)


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls with at most MAX_STATES states."""
    return few_states(inputs.A.shape[1])


def room(inputs: Inputs, _options: Options) -> tuple[Tensor]:
    """A state every CHECKPOINT_TOKENS tokens, (B, chunks, N, D)."""
    batch, channels, length = inputs.u.shape
    chunks = (length + CHECKPOINT_TOKENS - 1) // CHECKPOINT_TOKENS
    shape = (batch, chunks, inputs.A.shape[1], channels)
    return (torch.empty(shape, dtype=dtype_of(inputs), device=inputs.u.device),)


def _arguments(inputs: Inputs, options: Options, checkpoints: Tensor | None) -> dict[str, object]:
    """The arguments shared by the forward and backward kernels."""
    u, delta, A, B, C, D, z, delta_bias = inputs
    return {
        "sizes": sizes_of(inputs),
        "u": argument(u),
        "delta": argument(delta),
        "A": argument(A),
        "B": rows(B),
        "C": rows(C),
        "variable_B": B.dim() > 2,
        "variable_C": C.dim() > 2,
        "D": argument(D),
        "delta_bias": argument(delta_bias),
        "delta_softplus": options.delta_softplus,
        "checkpoints": address(checkpoints),
        "use_double": dtype_of(inputs) == torch.float64,
        "threads": torch.get_num_threads(),
        "z": argument(z),
    }


def forward(inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
    """The output, the last state, and the states saved for the backward pass."""
    out, last = new_outputs(inputs, options)
    kept = room(inputs, options) if save else ()
    for new in (out, *kept):
        fresh(new)
    arguments = _arguments(inputs, options, *kept or (None,))
    check(_native.C.selective_scan_forward(**arguments, out=argument(out), last_state=address(last)))
    return out, last, *kept


def backward(
    inputs: Inputs, options: Options, kept: Sequence[Tensor], grads: tuple[Tensor, Tensor | None], _wanted: object
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs in their order."""
    u, delta, _, B, C, _, z, _ = inputs
    checkpoints, (dout, dlast) = kept[0], grads
    batch, channels, length, states, groups = sizes_of(inputs)
    du, ddelta, dz = (None if t is None else fresh(torch.empty_like(t)) for t in (u, delta, z))

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=checkpoints.dtype, device=u.device)

    dA, dD, dbias = zeros(channels, states), zeros(channels), zeros(channels)
    dB, dC = (zeros(*((batch, groups, length, states) if v.dim() > 2 else (channels, states))) for v in (B, C))
    status = _native.C.selective_scan_backward(
        **_arguments(inputs, options, checkpoints),
        dout=argument(dout),
        dlast_state=argument(dlast),
        du=argument(du),
        ddelta=argument(ddelta),
        dz=argument(dz),
        dA=address(dA),
        dB=address(dB),
        dC=address(dC),
        dD=address(dD),
        ddelta_bias=address(dbias),
    )
    check(status)
    return du, ddelta, dA, token_last(dB, B), token_last(dC, C), dD, dz, dbias
