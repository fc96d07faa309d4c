"""Sums over the batches of several processes, whose gradients are as if the batches were one, on any device.

With losses that are taken over these sums, the gradients that DDP averages are those of one process with all images.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn

Group = Any  # torch.distributed.ProcessGroup, which builds of torch without distributed lack


def all_processes() -> Group | None:
    """The group of all processes; None where there is one alone."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return None
    return distributed.group.WORLD


def group_of(norm: nn.Module) -> Group | None:
    """The processes over whose batches a layer normalises: those of a SyncBatchNorm; None where it is one alone."""
    if not isinstance(norm, nn.SyncBatchNorm) or all_processes() is None:
        return None
    group = norm.process_group or distributed.group.WORLD
    return group if distributed.get_world_size(group) > 1 else None


class _Sum(torch.autograd.Function):
    """The sum over the processes, in each of them. Every process's loss depends on it, so that gradients sum alike."""

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
    """The sum over the processes."""
    return _Sum.apply(group, x)


@torch.no_grad()
def extremes_over(group: Group, x: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest entry of all processes; no gradient."""
    pair = torch.stack([-x.min(), x.max()])
    distributed.all_reduce(pair, distributed.ReduceOp.MAX, group=group)
    return -pair[0], pair[1]


def mean_over(group: Group, x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over the rows (B, ...) of all processes, and how many there are."""
    count = x.new_tensor([x.shape[0]])
    total = sum_over(group, torch.cat([x.sum(0).flatten(), count]))
    return (total[:-1] / total[-1]).view(x.shape[1:]), total[-1].detach()


def batch_norm_over(
    group: Group, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, momentum: float, eps: float
) -> Tensor:
    """Batch normalisation of rows (B, F) in training, over the batches of all processes.

    Updates the running `mean` and `var` (F,), the latter with the unbiased variance, as torch does.
    """
    center, count = mean_over(group, x)  # (F,)
    spread, _ = mean_over(group, (x - center).square())  # (F,)
    with torch.no_grad():
        mean.lerp_(center.to(mean.dtype), momentum)
        var.lerp_((spread * count / (count - 1).clamp(min=1)).to(var.dtype), momentum)
    return (x - center) * torch.rsqrt(spread + eps) * weight.to(x.dtype) + bias.to(x.dtype)
