"""The arguments of selective_scan, its sizes, and the layout of its results."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit._check import check_device, check_shape, check_tensor
from mtlkit.operators._launch import Argument, argument, compute_dtype


class Inputs(NamedTuple):
    """As `mtlkit.ops.selective_scan` takes them."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None


class Options(NamedTuple):
    """As `mtlkit.ops.selective_scan` takes them."""

    delta_softplus: bool


class Sizes(NamedTuple):
    """SelectiveScanShape of csrc/common/selective_scan.h."""

    batch: int
    channels: int
    length: int
    states: int
    groups: int


def groups_of(B: Tensor, C: Tensor) -> int:
    """The groups of channels that share B and C."""
    return B.shape[1] if B.dim() == 4 else C.shape[1] if C.dim() == 4 else 1


def sizes_of(inputs: Inputs) -> Sizes:
    """The sizes of a call."""
    return Sizes._make((*inputs.u.shape, inputs.A.shape[1], groups_of(inputs.B, inputs.C)))


def check(inputs: Inputs, _: Options) -> None:
    """The shape rule."""
    u, delta, A, B, C, D, z, delta_bias = inputs
    check_tensor("u", u, 3)
    check_tensor("delta", delta, 3)
    if isinstance(A, Tensor) and A.is_complex():
        raise TypeError(f"A: expected a real tensor, got {A.dtype}; complex state spaces are not supported")
    check_tensor("A", A, 2)
    batch, channels, length = u.shape
    states = A.shape[1]
    if channels < 1 or length < 1:
        raise ValueError(f"u: expected shape (B, D, L) with D and L at least 1, got {tuple(u.shape)}")
    if states < 1:
        raise ValueError(f"A: expected shape (D, N) with N at least 1, got {tuple(A.shape)}")
    check_shape("delta", delta, "(B, D, L)", *u.shape)
    check_shape("A", A, "(D, N)", channels, states)
    for name, value in (("B", B), ("C", C)):
        check_tensor(name, value, (2, 3, 4))
        if value.dim() == 2:
            check_shape(name, value, "(D, N)", channels, states)
        elif value.dim() == 3:
            check_shape(name, value, "(B, N, L)", batch, states, length)
        else:
            groups = value.shape[1]
            check_shape(name, value, "(B, G, N, L)", batch, groups, states, length)
            if groups < 1 or channels % groups:
                raise ValueError(f"{name}: expected groups G that divide D = {channels}, got G = {groups}")
    if B.dim() >= 3 and C.dim() >= 3:
        groups_B, groups_C = groups_of(B, B), groups_of(C, C)
        if groups_B != groups_C:
            raise ValueError(f"C: expected as many groups as B has, {groups_B}, got {groups_C}")
    for name, value, letters, shape in (
        ("D", D, "(D,)", (channels,)),
        ("z", z, "(B, D, L)", tuple(u.shape)),
        ("delta_bias", delta_bias, "(D,)", (channels,)),
    ):
        if value is not None:
            check_tensor(name, value, len(shape))
            check_shape(name, value, letters, *shape)
    check_device(u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)


def dtype_of(inputs: Inputs) -> torch.dtype:
    """The dtype of the computation and of the last state."""
    return compute_dtype(inputs.u, inputs.delta, inputs.A, inputs.B, inputs.C)


def new_outputs(inputs: Inputs, _: Options) -> tuple[Tensor, Tensor]:
    """The output in the layout of u, and the last state, (B, D, N)."""
    u = inputs.u
    last = torch.empty(u.shape[0], u.shape[1], inputs.A.shape[1], dtype=dtype_of(inputs), device=u.device)
    return torch.empty_like(u), last


def rows(v: Tensor) -> Argument:
    """B or C as the kernels take it: with four strides, of which a constant one uses two."""
    return argument(v[:, :, None, None] if v.dim() == 2 else v[:, None] if v.dim() == 3 else v)


def token_last(gradient: Tensor, tensor: Tensor) -> Tensor:
    """The gradient of B or C, (B, G, L, N) where they vary, in the dimensions of the tensor."""
    if tensor.dim() == 2:
        return gradient
    gradient = gradient.transpose(2, 3)  # (B, G, N, L)
    return gradient[:, 0] if tensor.dim() == 3 else gradient
