"""ss2d by the CUDA kernels."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators import _launch
from mtlkit.operators._launch import (
    address,
    aligned,
    argument,
    as_float,
    check_cuda,
    few_states,
    launching,
    single_precision_only,
)
from mtlkit.operators.ss2d.orders import DIRECTIONS
from mtlkit.operators.ss2d.signature import Inputs, Options, from_rows, rows, sizes_of


@cache
def _tiling(states: int, rank: int, of_gpu: tuple[int, int]) -> Any:
    """SS2DTiling of csrc/cuda/ss2d/ss2d.h: no states if no kernel fits the GPU's shared memory."""
    return _native.C.cuda_ss2d_tiling(states=states, rank=rank, gpu=of_gpu)


def _tiling_of(inputs: Inputs) -> Any:
    return _tiling(int(inputs.A_logs.shape[1]), int(inputs.dt_weight.shape[2]), _launch.gpu(inputs.u.device))


def _plan(inputs: Inputs, backward: bool) -> Any:
    """SS2DPlan of csrc/cuda/ss2d/ss2d.h."""
    return _native.C.cuda_ss2d_plan(sizes=sizes_of(inputs), gpu=_launch.gpu(inputs.u.device), backward=backward)


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls with at most MAX_STATES states, without float64, that fit the GPU's shared memory."""
    states, rank = inputs.A_logs.shape[1], inputs.dt_weight.shape[2]
    if limit := few_states(states) or single_precision_only(inputs):
        return limit
    on_gpu = inputs.u.device.type == "cuda" and _native.C is not None and _native.C.cuda
    if on_gpu and _tiling_of(inputs).states == 0:
        return f"{states} states with a time step of rank {rank} do not fit the GPU's shared memory"
    return None


def room(inputs: Inputs, _options: Options) -> tuple[Tensor]:
    """The state before each tile of tokens but the first, (B, 4, tiles - 1, D, padded states)."""
    u = inputs.u
    tiling = _tiling_of(inputs)
    tiles = (u.shape[2] * u.shape[3] + tiling.tokens - 1) // tiling.tokens
    shape = (u.shape[0], DIRECTIONS, tiles - 1, u.shape[1], tiling.states)
    return (torch.empty(shape, dtype=torch.float32, device=u.device),)


def _arguments(inputs: Inputs, checkpoints: Tensor | None, plan: Any) -> tuple[dict[str, object], list[Tensor]]:
    """The arguments shared by the forward and backward kernels, and the tensors to keep alive until the launch."""
    u, x_dbl, *parameters = inputs
    batch, channels = u.shape[:2]
    x_rows = aligned(rows(x_dbl))
    many = batch * 2 * plan.pairs * (plan.chunks - 1) * channels
    ends = torch.empty(many, plan.padded_states, dtype=torch.float32, device=u.device)
    steps = torch.empty(many, dtype=torch.float32, device=u.device)
    dt_weight, dt_bias, A_logs, Ds = parameters = [as_float(t) for t in parameters]
    arguments = {
        "sizes": sizes_of(inputs),
        "u": argument(u),
        "x_dbl": argument(x_rows),
        "dt_weight": address(dt_weight),
        "dt_bias": address(dt_bias),
        "A_logs": address(A_logs),
        "Ds": address(Ds),
        "checkpoints": address(checkpoints),
        "plan": plan,
        "ends": address(ends),
        "steps": address(steps),
    }
    return arguments, [x_rows, *parameters, ends, steps]


def _maps(u: Tensor, count: int) -> list[Tensor]:
    """Buffers for the sums of the two pairs of opposite directions, or of both pairs, (B, D, H, W), channels-last."""
    options = {"dtype": torch.float32, "memory_format": torch.channels_last}
    return [torch.empty_like(u, **options) for _ in range(count)]


def _sum_of_maps(maps: list[Tensor], u: Tensor, dtype: torch.dtype) -> Tensor:
    """The output in the memory format of u; the first map's memory if format and dtype agree."""
    in_place = dtype == maps[0].dtype and u.stride() == maps[0].stride()
    total = maps[0] if in_place else torch.empty_like(u, dtype=dtype)
    if len(maps) == 2:
        return torch.add(*maps, out=total)
    return total if in_place else total.copy_(maps[0])


def forward_maps(inputs: Inputs, checkpoints: Tensor | None = None) -> list[Tensor]:
    """Two maps whose sum is the output, (B, D, H, W) in float32, channels-last."""
    plan = _plan(inputs, False)
    maps = _maps(inputs.u, 2)
    with launching(inputs.u) as stream:
        arguments, _alive = _arguments(inputs, checkpoints, plan)
        check_cuda(_native.C.cuda_ss2d_forward(**arguments, maps=tuple(map(address, maps)), stream=stream))
    return maps


def forward(inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
    """y, and the states saved for the backward pass."""
    kept = room(inputs, options) if save else ()
    maps = forward_maps(inputs, *kept)
    return _sum_of_maps(maps, inputs.u, options.out_dtype), *kept


def backward(
    inputs: Inputs, _options: Options, kept: Sequence[Tensor], grads: Sequence[Tensor], _wanted: object
) -> tuple[Tensor, ...]:
    """The gradients of the inputs in their order."""
    u, x_dbl, dt_weight, dt_bias, A_logs, Ds = inputs
    plan = _plan(inputs, True)
    batch, channels, height, width, states, rank = sizes_of(inputs)
    maps = _maps(u, plan.pairs)
    drows = torch.empty(batch, height, width, *x_dbl.shape[1:3], dtype=x_dbl.dtype, device=u.device)
    stored = plan.channel_blocks - 1 if x_dbl.dtype == torch.float32 else plan.channel_blocks  # drows is the first part
    one_window = plan.window_tiles >= max(plan.chunk_tiles, plan.tiles - (plan.chunks - 1) * plan.chunk_tiles)
    carries = maps[0].new_empty(
        0 if one_window else plan.images, 2 * plan.pairs, plan.chunks, channels, plan.padded_states
    )
    parts = maps[0].new_empty(stored, plan.images, 2 * plan.pairs, plan.pixels, rank + 2 * states)
    sums = maps[0].new_empty(plan.images * plan.chunks - 1, 2 * plan.pairs, channels, states + rank + 2)
    dweight, dbias, dA_logs, dDs = (maps[0].new_empty(t.shape) for t in (dt_weight, dt_bias, A_logs, Ds))
    with launching(u) as stream:
        arguments, alive = _arguments(inputs, kept[0], plan)
        status = _native.C.cuda_ss2d_backward(
            **arguments,
            dy=argument(grads[0]),
            dx_dbl=address(drows),
            maps=(address(maps[0]), address(maps[-1])),
            carries=address(carries),
            parts=address(parts),
            sums=address(sums),
            ddt_weight=address(dweight),
            ddt_bias=address(dbias),
            dA_logs=address(dA_logs),
            dDs=address(dDs),
            stream=stream,
        )
        check_cuda(status)
    del carries, parts, sums, alive
    return _sum_of_maps(maps, u, u.dtype), from_rows(drows), dweight, dbias, dA_logs, dDs
