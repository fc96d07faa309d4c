"""What reduce is given, and what it gathers."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit.operators.interaction.types import check_map, check_projection


class Inputs(NamedTuple):
    """A map, and what pools it: None where nothing does."""

    x: Tensor  # (B, C, H, W)
    weight: Tensor | None  # (P, C)
    bias: Tensor | None  # (P,)
    attn: Tensor | None  # (C,)


class Options(NamedTuple):
    """Whether the gradient energy is wanted, and the type of computation."""

    energy: bool
    dtype: torch.dtype


class Reduced(NamedTuple):
    """What is gathered, in the type of computation."""

    mean: Tensor  # (B, C)
    variance: Tensor  # (B, C), of the population
    energy: Tensor | None  # (B,), where it was asked for
    pooled: Tensor | None  # (B, P), where there is a projection


def check(inputs: Inputs, _: Options) -> None:
    """The shape rule."""
    check_map("x", inputs.x)
    if inputs.weight is not None:
        check_projection(*inputs)  # pyright: ignore[reportArgumentType] - it refuses a bias that is None


def new_outputs(inputs: Inputs, options: Options) -> tuple[Tensor, ...]:
    """As `Reduced` has them; empty what is not wanted."""
    x, weight, *_ = inputs
    batch, channels = x.shape[:2]
    projected = 0 if weight is None else weight.shape[0]
    shapes = (batch, channels), (batch, channels), (batch if options.energy else 0,), (batch, projected)
    return tuple(torch.empty(shape, dtype=options.dtype, device=x.device) for shape in shapes)
