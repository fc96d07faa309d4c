"""ss2d by the C++ kernels."""

from collections.abc import Sequence

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
    """Calls with at most MAX_STATES states."""
    return few_states(inputs.A_logs.shape[1])


def room(inputs: Inputs, _options: Options) -> tuple[Tensor]:
    """A state every CHECKPOINT_TOKENS tokens, (B, 4, chunks, N, D)."""
    u = inputs.u
    chunks = (u.shape[2] * u.shape[3] + CHECKPOINT_TOKENS - 1) // CHECKPOINT_TOKENS
    shape = (u.shape[0], DIRECTIONS, chunks, inputs.A_logs.shape[1], u.shape[1])
    return (torch.empty(shape, dtype=compute_dtype(u, inputs.x_dbl), device=u.device),)


def _arguments(inputs: Inputs, x_rows: Tensor, checkpoints: Tensor | None) -> dict[str, object]:
    """The arguments shared by the forward and backward kernels."""
    return {
        "sizes": sizes_of(inputs),
        "u": argument(inputs.u),
        "x_dbl": address(x_rows),
        "dt_weight": argument(inputs.dt_weight),
        "dt_bias": argument(inputs.dt_bias),
        "A_logs": argument(inputs.A_logs),
        "Ds": argument(inputs.Ds),
        "checkpoints": address(checkpoints),
        "use_double": x_rows.dtype == torch.float64,
        "threads": torch.get_num_threads(),
    }


def forward(inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
    """y, and the states saved for the backward pass."""
    (y,) = new_outputs(inputs, options)
    kept = room(inputs, options) if save else ()
    for new in (y, *kept):
        fresh(new)
    x_rows = rows(inputs.x_dbl.to(compute_dtype(inputs.u, inputs.x_dbl)))
    check(_native.C.ss2d_forward(**_arguments(inputs, x_rows, *kept or (None,)), y=argument(y)))
    return y, *kept


def backward(
    inputs: Inputs, _options: Options, kept: Sequence[Tensor], grads: Sequence[Tensor], _wanted: object
) -> tuple[Tensor, ...]:
    """The gradients of the inputs in their order."""
    u, x_dbl, *parameters = inputs
    (checkpoints,), (dy,) = kept, grads
    x_rows = rows(x_dbl.to(checkpoints.dtype))
    du, drows = (fresh(torch.empty_like(t)) for t in (u, x_rows))
    dweight, dbias, dA_logs, dDs = (torch.empty(t.shape, dtype=checkpoints.dtype) for t in parameters)
    status = _native.C.ss2d_backward(
        **_arguments(inputs, x_rows, checkpoints),
        dy=argument(dy),
        du=argument(du),
        dx_dbl=address(drows),
        ddt_weight=address(dweight),
        ddt_bias=address(dbias),
        dA_logs=address(dA_logs),
        dDs=address(dDs),
    )
    check(status)
    return du, from_rows(drows), dweight, dbias, dA_logs, dDs
