r"""causal_conv1d: depthwise causal convolution of a few taps, bias and SiLU in one pass over the sequence.

B sequences, D channels, L tokens, w taps; the tokens before the first are `initial_states`, or 0.

    a[b, d, t] = bias[d] + sum_i weight[d, i] x[b, d, t - (w - 1) + i],   i in 0 .. w - 1
    y = SiLU(a) = a / (1 + exp(-a))          or y = a

It is what stands between the input projection and the scan in every Mamba block. `causal_conv1d_update` computes the
next tokens of a sequence from the last ones, which it keeps.

Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023), figure 3; names and
semantics are those of the package causal-conv1d.
"""

from typing import Literal, overload

from torch import Tensor

from mtlkit._check import check_choice
from mtlkit.operators._launch import as_int32
from mtlkit.operators._operator import Operator
from mtlkit.operators.causal_conv1d import cpu, cuda, triton, update
from mtlkit.operators.causal_conv1d.reference import causal_conv1d_reference, causal_conv1d_torch
from mtlkit.operators.causal_conv1d.signature import Inputs, Options, check, new_outputs

ACTIVATIONS = (None, "silu", "swish")

OPERATOR = Operator(
    "causal_conv1d",
    inputs=Inputs,
    options=Options,
    check=check,
    new_outputs=new_outputs,
    outputs=2,
    indices=("seq_idx",),
    reference=causal_conv1d_reference,
    torch_form=causal_conv1d_torch,
    backends={"cpu": cpu, "cuda": cuda, "triton": triton},
)


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    seq_idx: Tensor | None = ...,
    initial_states: Tensor | None = ...,
    return_final_states: Literal[False] = ...,
    activation: str | None = ...,
) -> Tensor: ...
@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    seq_idx: Tensor | None = ...,
    initial_states: Tensor | None = ...,
    return_final_states: Literal[True],
    activation: str | None = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    seq_idx: Tensor | None = ...,
    initial_states: Tensor | None = ...,
    return_final_states: bool = ...,
    activation: str | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise causal convolution of 2 to 4 taps over sequences, plus a bias, then SiLU if asked for.

    Inputs may be float32, float64, bfloat16 or float16, mixed as they come, of any strides; x is fastest where its
    channels or its tokens lie side by side. Sums are float32 (float64 where x is). First-order gradients flow to every
    tensor but seq_idx; the backward pass computes the convolution again instead of keeping it. Results repeat bit by
    bit on the same machine and thread count.

    Args:
        x: input, (B, D, L).
        weight: one filter a channel, (D, w) with w from 2 to 4; its last tap meets the token itself.
        bias: added before the activation, (D,).
        seq_idx: (B, L) integers, which sequence each token belongs to: taps do not cross a boundary, and tokens below
            0 are padding, whose output is 0. Not together with initial or final states.
        initial_states: the w - 1 tokens before x, (B, D, w - 1); zeros if None.
        return_final_states: whether the last w - 1 tokens are returned too, the initial states of what follows.
        activation: None, "silu" or "swish", which is the same.

    Returns:
        The output, (B, D, L) in the dtype of x: channels-last where the channels of x lie side by side, otherwise
        contiguous. With `return_final_states` also the final states, (B, D, w - 1), in the dtype and layout of x.

    Raises:
        TypeError: an argument is not a tensor, or of the wrong dtype.
        ValueError: shapes or devices do not fit together, or the backend that was asked for cannot serve.

    Example:
        >>> import torch, mtlkit
        >>> x = torch.randn(2, 100, 8).transpose(1, 2)  # the channels lie side by side
        >>> mtlkit.ops.causal_conv1d(x, torch.randn(8, 4), torch.randn(8), activation="silu").shape
        torch.Size([2, 8, 100])
    """
    check_choice("activation", activation, ACTIVATIONS)
    inputs = Inputs(x, weight, bias, as_int32(seq_idx), initial_states)
    y, final_states = OPERATOR(inputs, Options(activation is not None, bool(return_final_states)))
    return (y, final_states) if return_final_states else y


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> Tensor:
    """`causal_conv1d` of the tokens that come next, with the last ones kept in `conv_state`, which is updated in place.

    Tensors may be float32, float64, bfloat16 or float16, mixed as they come, of any strides. It is a step of decoding:
    no gradient flows through it.

    Args:
        x: the next token, (B, D), or the next tokens, (B, D, L).
        conv_state: the last S tokens, (B, D, S) with S at least w - 1; x is appended, and the oldest tokens leave.
        weight: one filter a channel, (D, w) with w from 2 to 4.
        bias: added before the activation, (D,).
        activation: None, "silu" or "swish", which is the same.
        cache_seqlens: how many tokens each sequence had before, (B,) integers; then conv_state is a ring, in which
            token t is at place t modulo S.
        conv_state_indices: which rows of conv_state the sequences have, (B,) integers; below 0 is padding, whose output
            is 0. conv_state may then have any count of rows.

    Returns:
        The output, in the shape and dtype of x.

    Raises:
        TypeError: an argument is not a tensor, or of the wrong dtype.
        ValueError: shapes or devices do not fit together, conv_state is an expanded tensor, or the backend that was
            asked for cannot serve.
        IndexError: conv_state_indices names a row that conv_state does not have.

    Example:
        >>> import torch, mtlkit
        >>> x, weight, state = torch.randn(2, 8, 5), torch.randn(8, 4), torch.zeros(2, 8, 3)
        >>> steps = [mtlkit.ops.causal_conv1d_update(x[..., t], state, weight) for t in range(5)]
        >>> torch.allclose(torch.stack(steps, -1), mtlkit.ops.causal_conv1d(x, weight), atol=1e-5)
        True
    """
    check_choice("activation", activation, ACTIVATIONS)
    indices = as_int32(cache_seqlens), as_int32(conv_state_indices)
    return update.STEP(update.Inputs(x, conv_state, weight, bias, *indices), update.Options(activation is not None))
