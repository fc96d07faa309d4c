"""Differentiable sums over the batches of several processes, on any device.

If losses are computed from these sums, DDP's averaged gradients are those of one process with all images.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn

Group = Any  # torch.distributed.ProcessGroup, which is missing in builds of torch without distributed


def all_processes() -> Group | None:
    """Returns the group of all processes; None if there is only one."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return None
    return distributed.group.WORLD


def group_of(norm: nn.Module) -> Group | None:
    """Returns the process group of a SyncBatchNorm; None for other layers, or if there is only one process."""
    if not isinstance(norm, nn.SyncBatchNorm) or all_processes() is None:
        return None
    group = norm.process_group or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None


class _Sum(torch.autograd.Function):
    """All-reduce sum. The losses of all processes depend on it, so the backward sums the gradients in the same way."""

    @staticmethod
    def forward(ctx: Any, group: Group, x: Tensor) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor]:
        return None, _Sum.apply(ctx.group, dy)


def sum_over(group: Group, x: Tensor) -> Tensor:
    """Returns the sum of `x` over the processes."""
    return _Sum.apply(group, x)


@torch.no_grad()
def extremes_over(group: Group, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the minimum and maximum over all entries and processes, without gradient."""
    pair = torch.stack([-x.min(), x.max()])
    distributed.all_reduce(pair, distributed.ReduceOp.MAX, group=group)
    return -pair[0], pair[1]


def mean_over(group: Group, x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean over the rows of `x` (B, ...) of all processes, and the number of these rows."""
    count = x.new_tensor([x.shape[0]])
    total = sum_over(group, torch.cat([x.sum(0).flatten(), count]))
    return (total[:-1] / total[-1]).view(x.shape[1:]), total[-1].detach()


def batch_norm_over(
    group: Group, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, momentum: float, eps: float
) -> Tensor:
    """Normalises rows `x` (B, F) over the batches of all processes, as batch norm does in training.

    Updates the running `mean` and `var` (F,) in place, `var` with the unbiased variance as in PyTorch.
    """
    center, count = mean_over(group, x)  # (F,)
    spread, _ = mean_over(group, (x - center).square())  # (F,)
    with torch.no_grad():
        mean.lerp_(center.to(mean.dtype), momentum)
        var.lerp_((spread * count / (count - 1).clamp(min=1)).to(var.dtype), momentum)
    return (x - center) * torch.rsqrt(spread + eps) * weight.to(x.dtype) + bias.to(x.dtype)
