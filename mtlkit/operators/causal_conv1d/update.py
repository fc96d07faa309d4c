"""causal_conv1d_update: its arguments, its formula in plain PyTorch, and its C++ kernel."""

from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit._check import check_device, check_indices, check_shape, check_tensor
from mtlkit.operators import _launch
from mtlkit.operators._launch import address, argument, compute_dtype
from mtlkit.operators._step import Step, check_rows
from mtlkit.operators.causal_conv1d.signature import check_filter


class Inputs(NamedTuple):
    """The tensors of `mtlkit.ops.causal_conv1d_update`; the indices are int32 and contiguous."""

    x: Tensor
    conv_state: Tensor
    weight: Tensor
    bias: Tensor | None
    cache_seqlens: Tensor | None
    conv_state_indices: Tensor | None


class Options(NamedTuple):
    """Whether SiLU follows."""

    silu: bool


def check(inputs: Inputs, _: Options) -> None:
    """The shape rule."""
    x, conv_state, weight, bias, cache_seqlens, conv_state_indices = inputs
    check_tensor("x", x, (2, 3))
    batch, channels = x.shape[:2]
    if channels < 1 or x.shape[2:] == (0,):
        raise ValueError(f"x: expected shape (B, D) or (B, D, L) with D and L at least 1, got {tuple(x.shape)}")
    check_filter(x, weight, bias, channels)
    check_tensor("conv_state", conv_state, 3)
    rows, length = conv_state.shape[0] if conv_state_indices is not None else batch, conv_state.shape[2]
    check_shape("conv_state", conv_state, "(B, D, S)", rows, channels, length)
    if length < weight.shape[1] - 1:
        raise ValueError(f"conv_state: expected at least w - 1 = {weight.shape[1] - 1} tokens, got {length}")
    for name, value in (("cache_seqlens", cache_seqlens), ("conv_state_indices", conv_state_indices)):
        if value is not None:
            check_indices(name, value, "(B,)", batch)
    check_device(x=x, conv_state=conv_state, cache_seqlens=cache_seqlens, conv_state_indices=conv_state_indices)


def update_torch(inputs: Inputs, options: Options) -> Tensor:
    """The formula, one tap after another."""
    x, conv_state, weight, bias, cache_seqlens, conv_state_indices = inputs
    dtype, width, length = compute_dtype(x, conv_state), weight.shape[1], conv_state.shape[2]
    tokens = x if x.dim() == 3 else x[..., None]  # (B, D, L)
    count = tokens.shape[2]
    used = None if conv_state_indices is None else conv_state_indices >= 0  # (B,)
    rows = None if conv_state_indices is None else conv_state_indices.clamp(min=0).long()
    state = conv_state if rows is None else conv_state[rows]  # (B, D, S)
    if cache_seqlens is None:
        history = torch.cat([state, tokens.to(state.dtype)], -1)  # (B, D, S + L)
        new = history[..., count:]
        history = history[..., length - width + 1 :]  # (B, D, w - 1 + L)
    else:

        def at(first: int, last: int) -> Tensor:  # ring-buffer indices, by distance from the first new token
            distance = torch.arange(first, last, device=x.device)
            return ((cache_seqlens[:, None] + distance) % length)[:, None].expand(-1, x.shape[1], -1)

        history = torch.cat([state.gather(2, at(1 - width, 0)), tokens.to(state.dtype)], -1)
        fit = min(count, length)
        new = state.scatter(2, at(count - fit, count), tokens[..., count - fit :].to(state.dtype))
    a = torch.zeros_like(tokens, dtype=dtype)
    if bias is not None:
        a = a + bias.to(dtype)[:, None]
    for i in range(width):
        a = a + weight[:, i].to(dtype)[:, None] * history[..., i : i + count].to(dtype)
    y = (a / (1 + torch.exp(-a)) if options.silu else a).to(x.dtype)
    if rows is None or used is None:
        conv_state.copy_(new)
    else:
        conv_state[rows[used]] = new[used]
        y = torch.where(used[:, None, None], y, 0)
    return y.reshape(x.shape)


def new_output(inputs: Inputs, _: Options) -> Tensor:
    """Contiguous, in the shape and dtype of x."""
    return torch.empty(inputs.x.shape, dtype=inputs.x.dtype, device=inputs.x.device)


def update_cpu(inputs: Inputs, options: Options) -> Tensor:
    """Runs the C++ kernel."""
    x, conv_state, weight, bias, cache_seqlens, conv_state_indices = inputs
    if conv_state_indices is not None:
        check_rows("conv_state_indices", conv_state_indices, conv_state)
    y = new_output(inputs, options)
    tokens, results = (t if t.dim() == 3 else t[..., None] for t in (x, y))
    status = _native.C.causal_conv1d_update(
        use_double=compute_dtype(x, conv_state) == torch.float64,
        threads=torch.get_num_threads(),
        sizes=(*tokens.shape, weight.shape[1]),
        kept=conv_state.shape[2],
        x=argument(tokens),
        conv_state=argument(conv_state),
        weight=argument(weight),
        bias=argument(bias),
        cache_seqlens=address(cache_seqlens),
        conv_state_indices=address(conv_state_indices),
        silu=options.silu,
        y=argument(results),
    )
    _launch.check(status)
    return y


STEP = Step(
    "causal_conv1d_update",
    state="conv_state",
    inputs=Inputs,
    options=Options,
    check=check,
    new_output=new_output,
    torch_form=update_torch,
    backends={"cpu": update_cpu},
)
