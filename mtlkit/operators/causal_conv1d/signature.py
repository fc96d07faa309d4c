"""The arguments of causal_conv1d, the layout of its results, and the tokens in its final states."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit._check import check_device, check_indices, check_shape, check_tensor

WIDTHS = (2, 3, 4)


class Inputs(NamedTuple):
    """The tensors of `mtlkit.ops.causal_conv1d`; seq_idx is int32 and contiguous."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    seq_idx: Tensor | None
    initial_states: Tensor | None


class Options(NamedTuple):
    """Whether to apply SiLU, and whether to return final states."""

    silu: bool
    final_states: bool


def check_filter(x: Tensor, weight: Tensor, bias: Tensor | None, channels: int) -> None:
    """Raises unless weight is (D, w) and bias (D,)."""
    check_tensor("weight", weight, 2)
    if weight.shape[1] not in WIDTHS:
        raise ValueError(f"weight: expected shape (D, w) with w in {WIDTHS}, got {tuple(weight.shape)}")
    check_shape("weight", weight, "(D, w)", channels, weight.shape[1])
    if bias is not None:
        check_tensor("bias", bias, 1)
        check_shape("bias", bias, "(D,)", channels)
    check_device(x=x, weight=weight, bias=bias)


def check(inputs: Inputs, options: Options) -> None:
    """The shape rule."""
    x, weight, bias, seq_idx, initial_states = inputs
    check_tensor("x", x, 3)
    batch, channels, length = x.shape
    if channels < 1 or length < 1:
        raise ValueError(f"x: expected shape (B, D, L) with D and L at least 1, got {tuple(x.shape)}")
    check_filter(x, weight, bias, channels)
    if seq_idx is not None:
        check_indices("seq_idx", seq_idx, "(B, L)", batch, length)
        if initial_states is not None or options.final_states:
            raise ValueError("seq_idx: expected None with initial_states or return_final_states, got a tensor")
    if initial_states is not None:
        check_tensor("initial_states", initial_states, 3)
        check_shape("initial_states", initial_states, "(B, D, w - 1)", batch, channels, weight.shape[1] - 1)
    check_device(x=x, seq_idx=seq_idx, initial_states=initial_states)


def channels_inside(x: Tensor) -> bool:
    """Whether (B, D, L) is channels-last."""
    return x.shape[1] > 1 and x.stride(1) == 1


def new_map(x: Tensor, length: int) -> Tensor:
    """(B, D, length), uninitialised, dense, in the layout of x; also for the gradient of x."""
    batch, channels = x.shape[:2]
    strides = (length * channels, 1, channels) if channels_inside(x) else (channels * length, length, 1)
    return torch.empty_strided((batch, channels, length), strides, dtype=x.dtype, device=x.device)  # not a view


def new_outputs(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor]:
    """The output, and the final states: (B, D, w - 1), or (B, D, 0) if they are not returned."""
    x, weight = inputs.x, inputs.weight
    return new_map(x, x.shape[2]), new_map(x, weight.shape[1] - 1 if options.final_states else 0)


# The final states are the last w - 1 tokens of the initial states followed by x. They are only a few tokens, so that #
# these two functions compute them rather than the kernels.


def set_final_states(final_states: Tensor, inputs: Inputs) -> None:
    """Copies the tokens."""
    count, length = final_states.shape[2], inputs.x.shape[2]
    new = min(count, length)
    final_states[..., count - new :].copy_(inputs.x[..., length - new :])
    if new < count:
        old = final_states[..., : count - new]
        old.zero_() if inputs.initial_states is None else old.copy_(inputs.initial_states[..., new:])


def add_final_states_gradient(dfinal_states: Tensor, dx: Tensor, dinitial_states: Tensor | None) -> None:
    """Adds the gradient of the final states to those of x and of the initial states."""
    count, length = dfinal_states.shape[2], dx.shape[2]
    new = min(count, length)
    dx[..., length - new :] += dfinal_states[..., count - new :]
    if new < count and dinitial_states is not None:
        dinitial_states[..., new:] += dfinal_states[..., : count - new]
