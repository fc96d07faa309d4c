"""causal_conv1d by the CUDA kernels."""

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators import _launch
from mtlkit.operators._launch import address, argument, as_float, check_cuda, launching, single_precision_only
from mtlkit.operators.causal_conv1d.signature import (
    Inputs,
    Options,
    add_final_states_gradient,
    channels_inside,
    new_map,
    new_outputs,
    set_final_states,
)


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls without float64."""
    return single_precision_only(inputs)


def _arguments(inputs: Inputs, options: Options) -> tuple[dict[str, object], list[Tensor | None]]:
    """The arguments shared by the forward and backward kernels, and the tensors to keep alive until the launch."""
    x, weight, bias, seq_idx, initial_states = inputs
    parameters = [None if t is None else as_float(t) for t in (weight, bias, initial_states)]
    names = ("weight", "bias", "initial_states")
    arguments = {
        "sizes": (*x.shape, weight.shape[1]),
        "x": argument(x),
        "seq_idx": address(seq_idx),
        "silu": options.silu,
        **{name: address(t) for name, t in zip(names, parameters, strict=True)},
    }
    return arguments, parameters


def forward(inputs: Inputs, options: Options, _save: bool) -> tuple[Tensor, Tensor]:
    """The output and the final states."""
    y, final_states = new_outputs(inputs, options)
    with launching(inputs.x) as stream:
        arguments, _alive = _arguments(inputs, options)
        check_cuda(_native.C.cuda_causal_conv1d_forward(**arguments, y=argument(y), stream=stream))
        if options.final_states:
            set_final_states(final_states, inputs)
    return y, final_states


def backward(
    inputs: Inputs, options: Options, _kept: object, grads: tuple[Tensor, Tensor | None], _wanted: object
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight, bias, seq_idx (None) and the initial states."""
    x, weight, bias, _, initial_states = inputs
    dx, (dy, dfinal_states), width = new_map(x, x.shape[2]), grads, weight.shape[1]
    if channels_inside(x) and dy.stride(1) != 1:  # neighbouring threads have neighbouring channels
        dy = new_map(x, x.shape[2]).copy_(dy)
    float32 = {"dtype": torch.float32, "device": x.device}
    dinitial_states = None if initial_states is None else torch.empty(initial_states.shape, **float32)
    with launching(x) as stream:
        arguments, _alive = _arguments(inputs, options)
        parts = _native.C.cuda_causal_conv1d_parts(sizes=arguments["sizes"], multiprocessors=_launch.gpu(x.device)[0])
        partials = torch.empty(parts, x.shape[1], 5, **float32)
        status = _native.C.cuda_causal_conv1d_backward(
            **arguments,
            dy=argument(dy),
            dx=argument(dx),
            partials=address(partials),
            parts=parts,
            dinitial_states=address(dinitial_states),
            stream=stream,
        )
        check_cuda(status)
        if options.final_states and dfinal_states is not None:
            add_final_states_gradient(dfinal_states, dx, dinitial_states)
        sums = partials.sum(0)  # (D, 5)
    return dx, sums[:, :width].flip(1), None if bias is None else sums[:, 4], None, dinitial_states
