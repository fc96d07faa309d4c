"""The arguments of ss2d_norm_gate, as the inputs of its two parts, and the layout of its output."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit._check import check_device
from mtlkit.operators import norm_gate, ss2d


class Inputs(NamedTuple):
    """As `mtlkit.ops.ss2d_norm_gate` takes them."""

    u: Tensor
    x_dbl: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A_logs: Tensor
    Ds: Tensor
    weight: Tensor | None
    bias: Tensor | None
    z: Tensor | None


class Options(NamedTuple):
    """As `mtlkit.ops.ss2d_norm_gate` takes them."""

    eps: float
    out_dtype: torch.dtype


def scan_part(inputs: Inputs, options: Options) -> tuple[ss2d.Inputs, ss2d.Options]:
    """The inputs of ss2d."""
    return ss2d.Inputs._make(inputs[:6]), ss2d.Options(options.out_dtype)


def norm_part(y: Tensor, inputs: Inputs, options: Options) -> tuple[norm_gate.Inputs, norm_gate.Options]:
    """The inputs of norm_gate; the scan's output y, (B, D, H, W), becomes channels-last."""
    rest = inputs.weight, inputs.bias, inputs.z
    return norm_gate.Inputs(y.permute(0, 2, 3, 1), *rest), norm_gate.Options(options.eps)


def check(inputs: Inputs, options: Options) -> None:
    """The shape rules of both parts."""
    ss2d.check(inputs, options)  # pyright: ignore[reportArgumentType] - it reads tensors by place, the scan's being first
    batch, channels, height, width = inputs.u.shape
    shape = batch, height, width, channels
    norm_gate.check_parameters(shape, inputs.weight, inputs.bias, inputs.z, options.eps)
    check_device(u=inputs.u, weight=inputs.weight, bias=inputs.bias, z=inputs.z)


def new_outputs(inputs: Inputs, options: Options) -> tuple[Tensor]:
    """Contiguous, (B, H, W, D)."""
    batch, channels, height, width = inputs.u.shape
    return (torch.empty(batch, height, width, channels, dtype=options.out_dtype, device=inputs.u.device),)
