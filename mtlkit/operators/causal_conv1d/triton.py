"""causal_conv1d by the Triton kernels, which are loaded at the first call."""

from torch import Tensor

from mtlkit.operators._launch import single_precision_only
from mtlkit.operators.causal_conv1d.signature import (
    Inputs,
    Options,
    add_final_states_gradient,
    new_map,
    new_outputs,
    set_final_states,
)


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls without float64."""
    return single_precision_only(inputs)


def forward(inputs: Inputs, options: Options, _save: bool) -> tuple[Tensor, Tensor]:
    """The output and the final states."""
    from mtlkit.kernels import causal_conv1d as kernels

    y, final_states = new_outputs(inputs, options)
    kernels.forward(*inputs, options.silu, y)
    if options.final_states:
        set_final_states(final_states, inputs)
    return y, final_states


def backward(
    inputs: Inputs, options: Options, _kept: object, grads: tuple[Tensor, Tensor | None], _wanted: object
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight, bias, seq_idx (None) and the initial states."""
    from mtlkit.kernels import causal_conv1d as kernels

    dx = new_map(inputs.x, inputs.x.shape[2])
    dweight, dbias, dinitial_states = kernels.backward(grads[0], *inputs, options.silu, dx)
    if options.final_states and grads[1] is not None:
        add_final_states_gradient(grads[1], dx, dinitial_states)
    return dx, dweight, dbias, None, dinitial_states
