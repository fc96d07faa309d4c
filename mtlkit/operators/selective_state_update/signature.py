"""The arguments of selective_state_update, and the layout of its output."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit._check import check_device, check_indices, check_shape, check_tensor


class Inputs(NamedTuple):
    """As `mtlkit.ops.selective_state_update` takes them, with or without heads; indices are int32 and contiguous."""

    x: Tensor
    state: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    state_batch_indices: Tensor | None


class Options(NamedTuple):
    """As `mtlkit.ops.selective_state_update` takes them."""

    dt_softplus: bool


def check(inputs: Inputs, _: Options) -> None:
    """The shape rule."""
    x, state, dt, A, B, C, D, z, dt_bias, state_batch_indices = inputs
    check_tensor("state", state, (3, 4))
    if isinstance(A, Tensor) and A.is_complex():
        raise TypeError(f"A: expected a real tensor, got {A.dtype}; complex state spaces are not supported")
    letters = "H, D" if state.dim() == 4 else "D"
    channels, states = state.shape[1:-1], state.shape[-1]  # with the heads before the channels
    if 0 in state.shape[1:]:
        raise ValueError(f"state: expected shape (B, {letters}, N) with no size of 0, got {tuple(state.shape)}")
    check_tensor("x", x, len(channels) + 1)
    batch = x.shape[0]
    check_shape("x", x, f"(B, {letters})", batch if state_batch_indices is not None else state.shape[0], *channels)
    check_tensor("A", A, len(channels) + 1)
    check_shape("A", A, f"({letters}, N)", *channels, states)
    for name, value in (("B", B), ("C", C)):
        check_tensor(name, value, (2, 3) if state.dim() == 4 else 2)
        if value.dim() == 2:
            check_shape(name, value, "(B, N)", batch, states)
        else:
            check_shape(name, value, "(B, G, N)", batch, B.shape[1] if B.dim() == 3 else 1, states)
            if value.shape[1] < 1 or channels[0] % value.shape[1]:
                raise ValueError(f"{name}: expected groups G that divide H = {channels[0]}, got G = {value.shape[1]}")
    if B.dim() != C.dim():
        raise ValueError(f"C: expected {B.dim()} dimensions, as B has, got {C.dim()}")
    check_tensor("dt", dt, x.dim())
    check_shape("dt", dt, f"(B, {letters})", *x.shape)
    for name, value, shape, sizes in (
        ("D", D, f"({letters},)", channels),
        ("z", z, f"(B, {letters})", x.shape),
        ("dt_bias", dt_bias, f"({letters},)", channels),
    ):
        if value is not None:
            check_tensor(name, value, len(sizes))
            check_shape(name, value, shape, *sizes)
    if state_batch_indices is not None:
        check_indices("state_batch_indices", state_batch_indices, "(B,)", batch)
    check_device(
        x=x, state=state, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, state_batch_indices=state_batch_indices
    )


def new_output(inputs: Inputs, _: Options) -> Tensor:
    """Contiguous, in the shape and dtype of x."""
    return torch.empty(inputs.x.shape, dtype=inputs.x.dtype, device=inputs.x.device)


def with_heads(inputs: Inputs) -> Inputs:
    """Views with a dimension of heads, and of groups for B and C."""
    x, state, dt, A, B, C, D, z, dt_bias, state_batch_indices = inputs
    if B.dim() == 2:
        B, C = B[:, None], C[:, None]
    if state.dim() == 3:
        state, x, dt, A = state[:, None], x[:, None], dt[:, None], A[None]
        D, dt_bias = (None if t is None else t[None] for t in (D, dt_bias))
        z = None if z is None else z[:, None]
    return Inputs(x, state, dt, A, B, C, D, z, dt_bias, state_batch_indices)
