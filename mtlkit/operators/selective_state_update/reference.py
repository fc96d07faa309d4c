"""The formula."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.operators._launch import compute_dtype
from mtlkit.operators.selective_state_update.signature import Inputs, Options, with_heads


def selective_state_update_torch(inputs: Inputs, options: Options) -> Tensor:
    """The formula, in float32 (float64 if any tensor is)."""
    shape, out_dtype, dtype = inputs.x.shape, inputs.x.dtype, dtype_of(inputs)
    x, state, dt, A, B, C, D, z, dt_bias, rows = with_heads(inputs)

    def wide(t: Tensor) -> Tensor:
        return t.to(dtype)

    used = None if rows is None else rows >= 0  # (B,)
    rows = None if rows is None else rows.clamp(min=0).long()
    h = wide(state if rows is None else state[rows])  # (B, H, D, N)
    dt = wide(dt)  # (B, H, D)
    if dt_bias is not None:
        dt = dt + wide(dt_bias)
    if options.dt_softplus:
        dt = F.softplus(dt)
    per_group = A.shape[0] // B.shape[1]
    B, C = (wide(t).repeat_interleave(per_group, 1)[:, :, None] for t in (B, C))  # (B, H, 1, N)
    h = torch.exp(dt[..., None] * wide(A)) * h + (dt * wide(x))[..., None] * B
    y = (h * C).sum(-1)  # (B, H, D)
    if D is not None:
        y = y + wide(D) * wide(x)
    if z is not None:
        y = y * F.silu(wide(z))
    if rows is None or used is None:
        state.copy_(h)
    else:
        state[rows[used]] = h[used].to(state.dtype)
        y = torch.where(used[:, None, None], y, 0)
    return y.to(out_dtype).reshape(shape)


def dtype_of(inputs: Inputs) -> torch.dtype:
    """The dtype of the computation."""
    return compute_dtype(inputs.x, inputs.state, inputs.dt, inputs.A, inputs.B, inputs.C)
