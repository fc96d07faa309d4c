r"""The selective scan along any orders of the tokens. ss2d is its special case with four, selective_scan with one.

B samples, D channels, L tokens, K directions of T steps each, N states, R rank of the time step, M = R + 2 N.

Direction k visits token o = order[k, t] at its step t. With the rows of x_dbl[k] split into dts (R), B (N) and C (N):

    dt_t = softplus(dt_weight[k] dts_o + dt_bias[k])
    h_t  = exp(-dt_t exp(A_logs[k])) h_{t-1} + dt_t u_o B_o,   h_{-1} = initial_state[k]
    y_o  = sum_n h_t[n] C_o[n] + Ds[k] u_o,                    0 for a token that direction k skips

h_{t-1} is replaced by zeros where token o belongs to another sequence than the token before it. The output is the y of
every direction, or their sum.

Source: Liu et al., "VMamba: Visual State Space Model" (2024), section 4.2. The orders are those of Huang et al.,
"LocalMamba" (2024), Pei et al., "EfficientVMamba" (2024), Yang et al., "PlainMamba" (2024) and Xing et al., "SegMamba"
(2024).
"""

from typing import Literal, overload

import torch
from torch import Tensor

from mtlkit.operators._operator import Operator
from mtlkit.operators.directional_scan import cpu, cuda, triton
from mtlkit.operators.directional_scan.orders import ScanOrder
from mtlkit.operators.directional_scan.reference import directional_scan_reference, directional_scan_torch
from mtlkit.operators.directional_scan.signature import (
    INDICES,
    Inputs,
    Options,
    check,
    check_input,
    new_outputs,
    order_of,
    sequences_of,
)

OPERATOR = Operator(
    "directional_scan",
    inputs=Inputs,
    options=Options,
    check=check,
    new_outputs=new_outputs,
    outputs=2,
    kept=1,
    indices=INDICES,
    reference=directional_scan_reference,
    torch_form=directional_scan_torch,
    backends={"cpu": cpu, "cuda": cuda, "triton": triton},
)


@overload
def directional_scan(
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    order: ScanOrder | Tensor,
    *,
    initial_state: Tensor | None = ...,
    seq_idx: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    merge: bool = ...,
    return_last_state: Literal[False] = ...,
    out_dtype: torch.dtype | None = ...,
) -> Tensor: ...
@overload
def directional_scan(
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    order: ScanOrder | Tensor,
    *,
    initial_state: Tensor | None = ...,
    seq_idx: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    merge: bool = ...,
    return_last_state: Literal[True],
    out_dtype: torch.dtype | None = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def directional_scan(
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    order: ScanOrder | Tensor,
    *,
    initial_state: Tensor | None = ...,
    seq_idx: Tensor | None = ...,
    cu_seqlens: Tensor | None = ...,
    merge: bool = ...,
    return_last_state: bool = ...,
    out_dtype: torch.dtype | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
def directional_scan(
    u: Tensor,
    x_dbl: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    order: ScanOrder | Tensor,
    *,
    initial_state: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    merge: bool = True,
    return_last_state: bool = False,
    out_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan of tokens along K directions, each with its own order, from their projections to the output.

    Inputs may be float32, float64, bfloat16 or float16, in any combination, with any strides; contiguous channels per
    token are the fast layout. State and sums are float32 (float64 if u or x_dbl is). First-order gradients flow to
    every floating-point tensor. Results are bitwise reproducible on the same machine with the same number of threads.

    An order of `mtlkit.ops.orders` is checked once, when it is made. An order given as a tensor is checked at every
    eager call, which synchronises with a GPU, and is not checked in compiled code.

    Args:
        u: input, (B, D, L), the same for every direction, or (B, K, D, L).
        x_dbl: projections of u for each direction, in the order of u's tokens, (B, K, R + 2 N, L): R values for the
            time step, then B, then C. Fastest if the values of a token are contiguous, as a linear layer produces
            them.
        dt_weight: projection of the time step, (K, D, R).
        dt_bias: its bias, added before softplus, (K, D).
        A_logs: logarithm of -A, (K D, N).
        Ds: weight of the skip connection, (K D,).
        order: the token that each direction visits at each step: an order of `mtlkit.ops.orders`, or integers, (K, T)
            or (B, K, T). A direction visits each token at most once; for a token that it skips, its output is 0.
        initial_state: the state before the first step of each direction, (B, K, D, N); zeros if None.
        seq_idx: the sequence that each token belongs to, integers (B, L). The state starts again at zero where the
            sequence changes along a direction; `initial_state` belongs to the first one visited.
        cu_seqlens: alternative to seq_idx for S sequences that are concatenated in a batch of 1: their bounds from 0
            to L, integers (S + 1,).
        merge: whether to sum the output over the directions.
        return_last_state: whether to return also the state after the last step of each direction.
        out_dtype: dtype of the output; that of u if None. Pass torch.float32 with float16 input if the output may
            exceed float16's range.

    Returns:
        The output, (B, D, L), or (B, K, D, L) unless merged, in the layout of u; with `return_last_state` also the
        last state, (B, K, D, N) in the dtype of the computation.

    Raises:
        TypeError: an argument is not a floating-point tensor, or not an integer tensor where one is expected.
        ValueError: shapes or devices do not fit together, the order visits a token twice or one that does not exist,
            both seq_idx and cu_seqlens are given, or the requested backend cannot run this call.

    Example:
        >>> import torch, mtlkit
        >>> D, N, R = 8, 16, 2
        >>> order = mtlkit.ops.orders.windows(6, 4, 2)
        >>> u, x_dbl = torch.randn(1, D, 24), torch.randn(1, 1, R + 2 * N, 24)
        >>> dt_weight, dt_bias = torch.randn(1, D, R), torch.randn(1, D)
        >>> mtlkit.ops.directional_scan(u, x_dbl, dt_weight, dt_bias, torch.zeros(D, N), torch.ones(D), order).shape
        torch.Size([1, 8, 24])
    """
    check_input(u)
    table, steps, walks = order_of(order, u)
    sequences = sequences_of(seq_idx, cu_seqlens, u)
    inputs = Inputs(u, x_dbl, dt_weight, dt_bias, A_logs, Ds, table, sequences, initial_state)
    y, last = OPERATOR(inputs, Options(bool(merge), out_dtype or u.dtype, steps, walks))
    return (y, last) if return_last_state else y
