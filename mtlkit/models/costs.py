"""Counts a network's parameters, the parameters its outputs depend on, and its operations, on the meta device."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Costs", "count_costs"]


@dataclass(frozen=True)
class Costs:
    """The costs of a network.

    Args:
        parameters: number of parameters.
        computing: number of parameters that its outputs depend on.
        flops: multiply-adds of convolutions and matrix products, plus four operations per element of a BatchNorm, as in
            published counts made with thop, and nine per state update of a scan, as VMamba counts them.

    Example:
        >>> import mtlkit
        >>> mtlkit.models.Costs(parameters=11_177_538, computing=11_177_538, flops=1.824e9).parameters
        11177538
    """

    parameters: int
    computing: int
    flops: float


def count_costs(network: nn.Module, *shapes: Sequence[int]) -> Costs:
    """The costs of a network for inputs of some shapes.

    Args:
        network: a network on any device; on "meta", no copy takes memory. It is not changed.
        *shapes: shapes of its float32 arguments; publications use one image of 224 x 224.

    Example:
        >>> import mtlkit
        >>> network = mtlkit.models.create_model("csa_moe", device="meta")
        >>> costs = mtlkit.models.count_costs(network, (1, 3, 224, 224), (1, 1, 224, 224))
        >>> costs.parameters, round(costs.flops / 1e9, 3)
        (34491525, 5.471)
    """
    from torch.utils.flop_counter import FlopCounterMode  # it loads Triton

    network = copy.deepcopy(network).to("meta").eval().requires_grad_(True)
    parameters = list(network.parameters())
    normalised: list[int] = []

    def hook(module: nn.Module, given: tuple[Tensor, ...], found: Any) -> None:
        normalised.append(given[0].numel())

    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_hook(hook)
    inputs = [torch.zeros(*shape, device="meta") for shape in shapes]
    with torch.enable_grad(), FlopCounterMode(display=False, custom_mapping=_operations()) as counter:
        outputs = _tensors(network(*inputs))
    total = torch.stack([output.float().sum() for output in outputs if output.requires_grad]).sum()
    slopes = torch.autograd.grad(total, parameters, allow_unused=True)
    computing = sum(p.numel() for p, slope in zip(parameters, slopes, strict=True) if slope is not None)
    flops = counter.get_total_flops() / 2 + 4 * sum(normalised)
    return Costs(sum(p.numel() for p in parameters), computing, flops)


def _tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of an output: a tensor, or a tuple of tensors and None."""
    parts = output if isinstance(output, tuple) else (output,)
    return [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]


# --- operators --------------------------------------------------------------------------------------------------------


def _operations() -> dict[Any, Callable[..., int]]:
    """Twice the operations of each of mtlkit's operators, from the shapes of its arguments; torch cannot count them."""
    ops = torch.ops.mtlkit
    return {
        ops.selective_scan: _selective_scan,
        ops.directional_scan: _directional_scan,
        ops.ss2d: _ss2d,
        ops.ss2d_norm_gate: _ss2d,
        ops.depthwise_conv2d: _depthwise_conv2d,
        ops.dwconv_silu: _dwconv_silu,
        ops.interaction_reduce: _interaction_reduce,
    }


def _scan(channels: int, length: int, states: int) -> int:
    """State updates over all pixels, for a number of channels."""
    return 2 * channels * length * (9 * states + 1)


def _selective_scan(backend: Any, u: Any, delta: Any, A: Any, *others: Any, out_val: Any = None, **options: Any) -> int:
    batch, channels, length = u
    return _scan(batch * channels, length, A[1])


def _ss2d(backend: Any, x: Any, x_dbl: Any, dt_weight: Any, *others: Any, out_val: Any = None, **options: Any) -> int:
    batch, channels, height, width = x
    states = (x_dbl[2] - dt_weight[2]) // 2  # dt, B and C
    length = height * width
    time_steps = 2 * batch * 4 * channels * dt_weight[2] * length
    return _scan(batch * 4 * channels, length, states) + time_steps


def _directional_scan(
    backend: Any, u: Any, x_dbl: Any, dt_weight: Any, dt_bias: Any, A_logs: Any, *others: Any, **options: Any
) -> int:
    *_, steps, _walks, _save = others
    directions, channels, rank = dt_weight
    all_channels = u[0] * directions * channels
    return _scan(all_channels, steps, A_logs[1]) + 2 * all_channels * rank * steps


def _dwconv_silu(backend: Any, x: Any, weight: Any, *others: Any, out_val: Any = None, **options: Any) -> int:
    return 2 * math.prod(x) * math.prod(weight[1:])


def _depthwise_conv2d(backend: Any, x: Any, weight: Any, *others: Any, out_shape: Any = None, **options: Any) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _interaction_reduce(backend: Any, seg: Any, weight: Any, *others: Any, out_val: Any = None, **options: Any) -> int:
    return 0 if weight is None else 2 * math.prod(seg) * weight[0]
