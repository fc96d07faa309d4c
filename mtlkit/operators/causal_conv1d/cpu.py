"""causal_conv1d by the C++ kernels."""

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import address, argument, check, compute_dtype, fresh
from mtlkit.operators.causal_conv1d.signature import (
    Inputs,
    Options,
    add_final_states_gradient,
    channels_inside,
    new_map,
    new_outputs,
    set_final_states,
)


def supports(_inputs: Inputs, _options: Options) -> None:
    """Every call."""


def _arguments(inputs: Inputs, options: Options) -> dict[str, object]:
    """The arguments shared by the forward and backward kernels."""
    x, weight, bias, seq_idx, initial_states = inputs
    return {
        "sizes": (*x.shape, weight.shape[1]),
        "x": argument(x),
        "weight": argument(weight),
        "bias": argument(bias),
        "seq_idx": address(seq_idx),
        "initial_states": argument(initial_states),
        "silu": options.silu,
        "use_double": x.dtype == torch.float64,
        "threads": torch.get_num_threads(),
    }


def forward(inputs: Inputs, options: Options, _save: bool) -> tuple[Tensor, Tensor]:
    """The output and the final states."""
    y, final_states = new_outputs(inputs, options)
    check(_native.C.causal_conv1d_forward(**_arguments(inputs, options), y=argument(fresh(y))))
    if options.final_states:
        set_final_states(final_states, inputs)
    return y, final_states


def backward(
    inputs: Inputs, options: Options, _kept: object, grads: tuple[Tensor, Tensor | None], _wanted: object
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight, bias, seq_idx (None) and the initial states."""
    x, weight, bias, _, initial_states = inputs
    dx, dtype, (dy, dfinal_states) = fresh(new_map(x, x.shape[2])), compute_dtype(x), grads
    dweight, dbias = (None if t is None else torch.empty(t.shape, dtype=dtype) for t in (weight, bias))
    dinitial_states = None if initial_states is None else torch.empty_like(initial_states)
    if channels_inside(x) and dy.stride(1) != 1:  # the kernel is fastest if all are channels-last
        dy = new_map(x, x.shape[2]).copy_(dy)
    status = _native.C.causal_conv1d_backward(
        **_arguments(inputs, options),
        dy=argument(dy),
        dx=argument(dx),
        dweight=address(dweight),
        dbias=address(dbias),
        dinitial_states=argument(dinitial_states),
    )
    check(status)
    if options.final_states and dfinal_states is not None:
        add_final_states_gradient(dfinal_states, dx, dinitial_states)
    return dx, dweight, dbias, None, dinitial_states
