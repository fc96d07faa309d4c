r"""causal_conv1d: depthwise causal convolution with a few taps, bias and SiLU in one pass over the sequence.

B sequences, D channels, L tokens, w taps; the tokens before the first are `initial_states`, or 0.

    a[b, d, t] = bias[d] + sum_i weight[d, i] x[b, d, t - (w - 1) + i],   i in 0 .. w - 1
    y = SiLU(a) = a / (1 + exp(-a))          or y = a

Every Mamba block has it between the input projection and the scan. `causal_conv1d_update` is the decoding step: it
keeps the last tokens of each sequence and computes the output of the next ones.

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
    """Depthwise causal convolution with 2 to 4 taps over sequences, plus a bias and optionally SiLU.

    Inputs may be float32, float64, bfloat16 or float16, in any combination, with any strides; x is fastest with
    contiguous channels or contiguous tokens. Sums are float32 (float64 if x is). First-order gradients flow to
    every tensor except seq_idx; the backward pass recomputes the convolution instead of storing it. Results are
    bitwise reproducible on the same machine with the same number of threads.

    Args:
        x: input, (B, D, L).
        weight: one filter per channel, (D, w) with w from 2 to 4; the last tap multiplies the current token.
        bias: added before the activation, (D,).
        seq_idx: the sequence that each token belongs to, (B, L) integers: taps do not cross a boundary. A negative
            value marks padding, whose output is 0. Cannot be combined with initial or final states.
        initial_states: the w - 1 tokens before x, (B, D, w - 1); zeros if None.
        return_final_states: whether to return also the last w - 1 tokens, the initial states of the next call.
        activation: None, "silu" or "swish", which is the same.

    Returns:
        The output, (B, D, L) in the dtype of x: channels-last if x is, otherwise contiguous. With
        `return_final_states` also the final states, (B, D, w - 1), in the dtype and layout of x.

    Raises:
        TypeError: an argument is not a tensor, or of the wrong dtype.
        ValueError: shapes or devices do not fit together, or the requested backend cannot run this call.

    Example:
        >>> import torch, mtlkit
        >>> x = torch.randn(2, 100, 8).transpose(1, 2)  # contiguous channels
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
    """`causal_conv1d` of the next tokens; the last tokens are kept in `conv_state`, which is updated in place.

    Tensors may be float32, float64, bfloat16 or float16, in any combination, with any strides. It is a decoding step
    without gradients.

    Args:
        x: the next token, (B, D), or the next tokens, (B, D, L).
        conv_state: the last S tokens, (B, D, S) with S at least w - 1; x is appended and the oldest tokens are
            dropped.
        weight: one filter per channel, (D, w) with w from 2 to 4.
        bias: added before the activation, (D,).
        activation: None, "silu" or "swish", which is the same.
        cache_seqlens: number of earlier tokens of each sequence, (B,) integers; conv_state is then a ring buffer with
            token t at index t modulo S.
        conv_state_indices: the row of conv_state of each sequence, (B,) integers; a negative value marks padding,
            whose output is 0. conv_state may then have any number of rows.

    Returns:
        The output, in the shape and dtype of x.

    Raises:
        TypeError: an argument is not a tensor, or of the wrong dtype.
        ValueError: shapes or devices do not fit together, conv_state is an expanded tensor, or the requested backend
            cannot run this call.
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
