"""The arguments and the results of reduce."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit.operators.interaction.types import check_map, check_projection


class Inputs(NamedTuple):
    """A map and its projection; None without one."""

    x: Tensor  # (B, C, H, W)
    weight: Tensor | None  # (P, C)
    bias: Tensor | None  # (P,)
    attn: Tensor | None  # (C,)


class Options(NamedTuple):
    """Whether to compute the gradient energy, and the dtype of the computation."""

    energy: bool
    dtype: torch.dtype


class Reduced(NamedTuple):
    """The sums, in the dtype of the computation."""

    mean: Tensor  # (B, C)
    variance: Tensor  # (B, C), of the population
    energy: Tensor | None  # (B,), if requested
    pooled: Tensor | None  # (B, P), if there is a projection


def check(inputs: Inputs, _: Options) -> None:
    """The shape rule."""
    check_map("x", inputs.x)
    if inputs.weight is not None:
        check_projection(*inputs)  # pyright: ignore[reportArgumentType] - it rejects a bias of None


def new_outputs(inputs: Inputs, options: Options) -> tuple[Tensor, ...]:
    """The fields of `Reduced`; empty if not requested."""
    x, weight, *_ = inputs
    batch, channels = x.shape[:2]
    projected = 0 if weight is None else weight.shape[0]
    shapes = (batch, channels), (batch, channels), (batch if options.energy else 0,), (batch, projected)
    return tuple(torch.empty(shape, dtype=options.dtype, device=x.device) for shape in shapes)
