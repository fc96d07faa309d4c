"""Pixels in the order of each direction, and back."""

import torch
from torch import Tensor

DIRECTIONS = 4


def cross_scan(x: Tensor) -> Tensor:
    """The pixels in the order of each direction: (B, 4, C, H, W), or (B, C, H, W) for all four, to (B, 4, C, L).

    Example:
        >>> import torch, mtlkit
        >>> mtlkit.ops.cross_scan(torch.arange(6).view(1, 1, 2, 3))[0, :, 0]
        tensor([[0, 1, 2, 3, 4, 5],
                [0, 3, 1, 4, 2, 5],
                [5, 4, 3, 2, 1, 0],
                [5, 2, 4, 1, 3, 0]])
    """
    if x.dim() == 4:
        x = x[:, None].expand(-1, DIRECTIONS, -1, -1, -1)
    rows = x.flatten(-2)  # (B, 4, C, L)
    columns = x.transpose(-1, -2).flatten(-2)  # (B, 4, C, L)
    return torch.stack((rows[:, 0], columns[:, 1], rows[:, 2].flip(-1), columns[:, 3].flip(-1)), 1)


def cross_merge(ys: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `cross_scan`, summed over the directions: (B, 4, C, L) to (B, C, H, W).

    Example:
        >>> import torch, mtlkit
        >>> x = torch.arange(6).view(1, 1, 2, 3)
        >>> torch.equal(mtlkit.ops.cross_merge(mtlkit.ops.cross_scan(x), 2, 3), 4 * x)
        True
    """
    rows = ys[:, 0] + ys[:, 2].flip(-1)  # (B, C, L)
    columns = ys[:, 1] + ys[:, 3].flip(-1)  # (B, C, L)
    return rows.unflatten(-1, (height, width)) + columns.unflatten(-1, (width, height)).transpose(-1, -2)
