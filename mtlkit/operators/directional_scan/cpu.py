"""directional_scan by the C++ kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import CHECKPOINT_TOKENS, Argument, address, argument, check, few_states, fresh
from mtlkit.operators.directional_scan.signature import (
    Inputs,
    Options,
    dtype_of,
    from_rows,
    new_outputs,
    rows,
    sizes_of,
    starts_of,
    table_of,
)


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls with at most MAX_STATES states."""
    return few_states(inputs.A_logs.shape[1])


def room(inputs: Inputs, options: Options) -> tuple[Tensor]:
    """A state every CHECKPOINT_TOKENS steps, (B, K, chunks, N, D)."""
    sizes = sizes_of(inputs, options)
    chunks = (sizes.steps + CHECKPOINT_TOKENS - 1) // CHECKPOINT_TOKENS
    shape = (sizes.batch, sizes.directions, chunks, sizes.states, sizes.channels)
    return (torch.empty(shape, dtype=dtype_of(inputs), device=inputs.u.device),)


def _images(tokens: Tensor) -> Argument:
    """(B, D, L), shared by the directions, or (B, K, D, L), viewed as images with one row, (B, K, D, 1, L)."""
    data, dtype, stride = argument(tokens)
    shared = (stride[0], 0, *stride[1:]) if len(stride) == 3 else stride
    return data, dtype, (*shared[:3], 0, shared[3])


def _arguments(
    inputs: Inputs, options: Options, x_rows: Tensor, checkpoints: Tensor | None
) -> tuple[dict[str, object], list[Tensor | None]]:
    """The arguments shared by the forward and backward kernels, and the tensors to keep alive until they return."""
    u, _, dt_weight, dt_bias, A_logs, Ds, _, seq_idx, initial_state = inputs
    batch, directions, channels, tokens, *others = sizes_of(inputs, options)
    order = table_of(inputs, options)
    starts = None if seq_idx is None else starts_of(seq_idx, order)
    arguments = {
        "sizes": (batch, directions, channels, 1, tokens, *others),
        "own_inputs": u.dim() == 4,
        "merge": options.merge,
        "u": _images(u),
        "x_dbl": address(x_rows),
        "dt_weight": argument(dt_weight),
        "dt_bias": argument(dt_bias),
        "A_logs": argument(A_logs),
        "Ds": argument(Ds),
        "order": address(order),
        "own_orders": order.dim() == 3,
        "starts": address(starts),
        "initial_state": argument(initial_state),
        "checkpoints": address(checkpoints),
        "use_double": x_rows.dtype == torch.float64,
        "threads": torch.get_num_threads(),
    }
    return arguments, [order, starts]


def forward(inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
    """y, the last state, and the states kept for the backward pass."""
    y, last = new_outputs(inputs, options)
    kept = room(inputs, options) if save else ()
    for new in (y, *kept):
        fresh(new)
    x_rows = rows(inputs.x_dbl.to(dtype_of(inputs)))
    arguments, _alive = _arguments(inputs, options, x_rows, *kept or (None,))
    check(_native.C.directional_scan_forward(**arguments, y=_images(y), last_state=address(last)))
    return y, last, *kept


def backward(
    inputs: Inputs, options: Options, kept: Sequence[Tensor], grads: tuple[Tensor, Tensor | None], _wanted: object
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs in their order."""
    u, x_dbl, dt_weight, dt_bias, A_logs, Ds, _, _, initial_state = inputs
    (checkpoints,), (dy, dlast) = kept, grads
    x_rows = rows(x_dbl.to(checkpoints.dtype))
    du, drows = (fresh(torch.empty_like(t)) for t in (u, x_rows))
    dweight, dbias, dA_logs, dDs = (
        torch.empty(t.shape, dtype=checkpoints.dtype) for t in (dt_weight, dt_bias, A_logs, Ds)
    )
    dinitial = None if initial_state is None else torch.empty(initial_state.shape, dtype=checkpoints.dtype)
    arguments, _alive = _arguments(inputs, options, x_rows, checkpoints)
    status = _native.C.directional_scan_backward(
        **arguments,
        dy=_images(dy),
        dlast_state=argument(dlast),
        du=_images(du),
        dx_dbl=address(drows),
        ddt_weight=address(dweight),
        ddt_bias=address(dbias),
        dA_logs=address(dA_logs),
        dDs=address(dDs),
        dinitial_state=address(dinitial),
    )
    check(status)
    return du, from_rows(drows), dweight, dbias, dA_logs, dDs, None, None, dinitial
