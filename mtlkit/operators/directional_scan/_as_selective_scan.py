"""Shared by the GPU kernels: the directions become channel groups of a selective scan, each with its own order."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit.operators.directional_scan.signature import Inputs, Options, channels_last, new_outputs, table_of


class Scan(NamedTuple):
    """The arguments of a selective scan of K D channels in K groups, all in float32 except u, B and C."""

    u: Tensor  # (B, K, D, L); the same memory for every direction where they share it
    delta: Tensor  # (B, K, D, L)
    A: Tensor  # (K D, N)
    B: Tensor  # (B, K, N, L)
    C: Tensor  # (B, K, N, L)
    D: Tensor  # (K D,)
    delta_bias: Tensor  # (K D,)
    table: Tensor | None  # (K, T) or (B, K, T); None if every direction visits the tokens in their order
    seq_idx: Tensor | None  # (B, L)
    initial_state: Tensor | None  # (B, K D, N)


def scan_of(inputs: Inputs, options: Options) -> Scan:
    """The scan of a call. The time steps before softplus are computed here, by one matrix product."""
    directions, _, rank = inputs.dt_weight.shape
    states = inputs.A_logs.shape[1]
    u = inputs.u if inputs.u.dim() == 4 else inputs.u[:, None].expand(-1, directions, -1, -1)
    dts, B, C = inputs.x_dbl.split((rank, states, states), 2)
    with torch.autocast(inputs.u.device.type, enabled=False):
        weight, dts = inputs.dt_weight.float(), dts.float()  # (K, D, R), (B, K, R, L)
        if channels_last(u):
            delta = (dts.transpose(-1, -2) @ weight.transpose(-1, -2)).transpose(-1, -2)  # (B, K, D, L)
        else:
            delta = weight @ dts  # (B, K, D, L)
    initial = inputs.initial_state
    return Scan(
        u,
        delta,
        -torch.exp(inputs.A_logs.float()),
        B,
        C,
        inputs.Ds.float(),
        inputs.dt_bias.float().flatten(),
        None if _in_order(inputs, options) else table_of(inputs, options),
        inputs.seq_idx,
        None if initial is None else initial.float().flatten(1, 2).contiguous(),
    )


def _in_order(inputs: Inputs, options: Options) -> bool:
    """Whether every direction visits all tokens in their order."""
    tokens, walks = inputs.u.shape[-1], options.walks
    forward = (0, tokens, 1, tokens)
    return inputs.table is None and options.steps == tokens and tuple(walks) == forward * (len(walks) // 4)


def _everywhere(tensor: Tensor, inputs: Inputs, options: Options) -> Tensor:
    """The tensor that the kernel will fill; zeroed first if a direction may skip a token."""
    return tensor if options.steps == inputs.u.shape[-1] else tensor.zero_()


def _for_each_direction(scan: Scan) -> Tensor:
    """Buffer for the outputs of the directions before they are summed, (B, K, D, L), float32, in the layout of u."""
    batch, directions, channels, tokens = scan.u.shape
    if channels_last(scan.u):
        return torch.empty_like(scan.delta)
    return scan.delta.new_empty(batch, directions, channels, tokens)


def outputs_of(inputs: Inputs, options: Options, scan: Scan) -> tuple[Tensor, Tensor]:
    """The output, uninitialised, and where each direction writes, (B, K, D, L): views of it, or what `merged` sums."""
    y, _ = new_outputs(inputs, options)
    if y.dim() == 4:
        parts = y
    else:
        parts = y[:, None] if scan.u.shape[1] == 1 else _for_each_direction(scan)
    return y, _everywhere(parts, inputs, options)


def merged(parts: Tensor, total: Tensor) -> Tensor:
    """`total`, (B, D, L), set to the sum over the directions in order, unless the directions wrote to it directly."""
    if total.dim() == 4 or parts.shape[1] == 1:
        return total
    return torch.sum(parts, 1, out=total) if total.dtype == parts.dtype else total.copy_(parts.sum(1))


def input_gradient(inputs: Inputs, options: Options, scan: Scan) -> tuple[Tensor, Tensor]:
    """The gradient of u, uninitialised, and where each direction writes, as in `outputs_of`."""
    du = torch.empty_like(inputs.u)
    if du.dim() == 4:
        parts = du
    else:
        parts = du[:, None] if scan.u.shape[1] == 1 else _for_each_direction(scan)
    return du, _everywhere(parts, inputs, options)


def output_gradient(grad: Tensor, scan: Scan) -> Tensor:
    """The output's gradient for each direction, (B, K, D, L); all share the same memory if they are merged."""
    return grad if grad.dim() == 4 else grad[:, None].expand(-1, scan.u.shape[1], -1, -1)


def gradients(
    inputs: Inputs,
    scan: Scan,
    du: Tensor,
    ddelta: Tensor,
    dA: Tensor,
    dB: Tensor,
    dC: Tensor,
    dD: Tensor,
    dbias: Tensor,
    dinitial: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs from those of the scan; dB and dC are (B, K, N, L), ddelta is (B, K, D, L)."""
    rank, states = inputs.dt_weight.shape[2], scan.A.shape[1]
    dts = inputs.x_dbl[:, :, :rank]
    dx_dbl = torch.empty_like(inputs.x_dbl)
    with torch.autocast(du.device.type, enabled=False):
        ddts = inputs.dt_weight.float().transpose(-1, -2) @ ddelta  # (B, K, R, L)
        dweight = (ddelta @ dts.float().transpose(-1, -2)).sum(0)  # (K, D, R)
    for part, gradient in zip(dx_dbl.split((rank, states, states), 2), (ddts, dB, dC), strict=True):
        part.copy_(gradient)
    return (
        du,
        dx_dbl,
        dweight,
        dbias.view_as(inputs.dt_bias),
        dA * scan.A,
        dD,
        None,
        None,
        None if dinitial is None else dinitial.unflatten(1, inputs.dt_weight.shape[:2]),
    )
