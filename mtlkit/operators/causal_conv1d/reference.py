"""The formula, and a form made of PyTorch's own convolution and activation."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit.operators._launch import compute_dtype
from mtlkit.operators.causal_conv1d.signature import new_map


def _with_history(x: Tensor, initial_states: Tensor | None, count: int) -> Tensor:
    """The `count` tokens before x, then x: (B, D, count + L)."""
    before = x.new_zeros(*x.shape[:2], count) if initial_states is None else initial_states[..., :count].to(x.dtype)
    return torch.cat([before, x], -1)


def _final_states(x: Tensor, initial_states: Tensor | None, count: int) -> Tensor:
    """The last `count` tokens of `initial` followed by x, in the layout of x."""
    return new_map(x, count).copy_(_with_history(x, initial_states, count)[..., x.shape[-1] :])


def _reached(seq_idx: Tensor, width: int) -> list[Tensor]:
    """For each tap, whether its token is in the same sequence as the output's token, (B, 1, L)."""
    padding = seq_idx < 0  # (B, L)
    continues = F.pad(seq_idx[:, 1:] == seq_idx[:, :-1], (1, 0))  # (B, L), same sequence as the previous
    reached = [~padding]
    for back in range(1, width):
        last = F.pad(continues, (back - 1, 0))[:, : seq_idx.shape[1]]  # that of the token back - 1 before
        reached.append(reached[-1] & last)
    return [r[:, None] for r in reversed(reached)]


def causal_conv1d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
    final_states: bool,
) -> tuple[Tensor, Tensor]:
    """The formula, one tap after another."""
    dtype, width, length = compute_dtype(x), weight.shape[1], x.shape[2]
    history = _with_history(x.to(dtype), initial_states, width - 1)  # (B, D, w - 1 + L)
    a = torch.zeros_like(x, dtype=dtype)  # (B, D, L)
    if bias is not None:
        a = a + bias.to(dtype)[:, None]
    reached = None if seq_idx is None else _reached(seq_idx, width)
    for i in range(width):
        tokens = history[..., i : i + length]  # (B, D, L), those w - 1 - i before
        if reached is not None:
            tokens = torch.where(reached[i], tokens, 0)
        a = a + weight[:, i].to(dtype)[:, None] * tokens
    y = a / (1 + torch.exp(-a)) if silu else a
    if reached is not None:
        y = torch.where(reached[-1], y, 0)
    return new_map(x, length).copy_(y), _final_states(x, initial_states, width - 1 if final_states else 0)


def causal_conv1d_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
    final_states: bool,
) -> tuple[Tensor, Tensor]:
    """PyTorch's own convolution and activation, in the dtype of x; one tap after another if there are boundaries."""
    width, length = weight.shape[1], x.shape[2]
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if seq_idx is None:
        before, padding = (x, width - 1) if initial_states is None else (_with_history(x, initial_states, width - 1), 0)
        a = F.conv1d(before, weight[:, None], bias, padding=padding, groups=x.shape[1])[..., :length]  # (B, D, L)
        y = F.silu(a) if silu else a
    else:
        history = _with_history(x, None, width - 1)  # (B, D, w - 1 + L)
        *before, here = _reached(seq_idx, width)
        a = x * weight[:, -1:] if bias is None else torch.addcmul(bias[:, None], x, weight[:, -1:])
        for i, reached in enumerate(before):
            a = a + torch.where(reached, history[..., i : i + length], 0) * weight[:, i : i + 1]
        y = torch.where(here, F.silu(a) if silu else a, 0)
    return new_map(x, length).copy_(y), _final_states(x, initial_states, width - 1 if final_states else 0)
