"""How the kernels read and write maps (B, C, H, W): with contiguous pixels or contiguous channels."""

import torch
from torch import Tensor

from mtlkit.operators._launch import Argument, argument


def by_pixels(x: Tensor) -> bool:
    """Whether the pixels of (B, C, L) are contiguous, rather than the channels."""
    return x.stride(2) == 1 and (x.stride(1) != 1 or x.shape[2] > 1)


def rows_of(x: Tensor) -> Tensor:
    """(B, C, L) with contiguous pixels or contiguous channels; copied only if the strides require it."""
    rows = x.flatten(2)
    return rows if 1 in rows.stride()[1:] else rows.contiguous()


def rows_like(dy: Tensor, x: Tensor) -> Tensor:
    """(B, C, L) of dy in the layout of the rows x; copied only if needed."""
    rows = rows_of(dy)
    if by_pixels(rows) == by_pixels(x):
        return rows
    return rows.contiguous() if by_pixels(x) else rows.transpose(1, 2).contiguous().transpose(1, 2)


def rows_argument(rows: Tensor) -> Argument:
    """Like `argument`, of rows (B, C, L) or of a dense map, which thus need not be flattened first."""
    data, dtype, strides = argument(rows)
    return data, dtype, (strides[0], strides[1], strides[-1 if rows.shape[-1] > 1 else 2])


def new_map(x: Tensor) -> Tensor:
    """NCHW or channels-last, whichever is closer to the layout of x."""
    if x.stride(1) != 1 and x.is_contiguous():  # the common case, without views
        return torch.empty_like(x)
    layout = torch.contiguous_format if by_pixels(rows_of(x)) else torch.channels_last
    return torch.empty_like(x, memory_format=layout)
