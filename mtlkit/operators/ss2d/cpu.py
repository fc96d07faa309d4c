"""ss2d by the C++ kernels."""

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import (
    CHECKPOINT_TOKENS,
    address,
    argument,
    check,
    compute_dtype,
    few_states,
    fresh,
)
from mtlkit.operators.ss2d.orders import DIRECTIONS
from mtlkit.operators.ss2d.signature import Inputs, Options, from_rows, new_outputs, rows, sizes_of


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls of few states."""
    return few_states(inputs.A_logs.shape[1])


def room(inputs: Inputs, _options: Options) -> tuple[Tensor]:
    """A state every CHECKPOINT_TOKENS tokens, (B, 4, chunks, N, D)."""
    u = inputs.u
    chunks = (u.shape[2] * u.shape[3] + CHECKPOINT_TOKENS - 1) // CHECKPOINT_TOKENS
    shape = (u.shape[0], DIRECTIONS, chunks, inputs.A_logs.shape[1], u.shape[1])
    return (torch.empty(shape, dtype=compute_dtype(u, inputs.x_dbl), device=u.device),)


def _arguments(inputs: Inputs, x_rows: Tensor, checkpoints: Tensor | None) -> tuple:
    """What the kernels of both directions take first."""
    u, _, *parameters = inputs
    return (
        sizes_of(inputs),
        tuple(argument(t) for t in (u, *parameters)),
        address(x_rows),
        address(checkpoints),
        x_rows.dtype == torch.float64,
        torch.get_num_threads(),
    )


def forward(inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
    """y, and the states kept for the backward pass."""
    (y,) = new_outputs(inputs, options)
    kept = room(inputs, options) if save else ()
    for new in (y, *kept):
        fresh(new)
    x_rows = rows(inputs.x_dbl.to(compute_dtype(inputs.u, inputs.x_dbl)))
    check(_native.C.ss2d_forward(*_arguments(inputs, x_rows, *kept or (None,)), argument(y)))
    return y, *kept


def backward(inputs: Inputs, _options: Options, kept, grads, _wanted) -> tuple[Tensor, ...]:
    """The gradients of the inputs in their order."""
    u, x_dbl, *parameters = inputs
    (checkpoints,), (dy,) = kept, grads
    x_rows = rows(x_dbl.to(checkpoints.dtype))
    du, drows = (fresh(torch.empty_like(t)) for t in (u, x_rows))
    dparameters = [torch.empty(t.shape, dtype=checkpoints.dtype) for t in parameters]
    status = _native.C.ss2d_backward(
        *_arguments(inputs, x_rows, checkpoints),
        argument(dy),
        argument(du),
        *(address(t) for t in (drows, *dparameters)),
    )
    check(status)
    return du, from_rows(drows), *dparameters
