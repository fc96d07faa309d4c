r"""ss2d_layer: a complete SS2D layer as one call of the C++ kernels, for inference.

    x, z  = split(X W_in)                                  no z without a gate
    u     = SiLU(DWConv(x))                                without a convolution SiLU(x)
    y     = ss2d(u, u W_x, ...)                            formula in mtlkit/operators/ss2d
    out   = (LayerNorm(y) gate(z)) W_out                   either may be left out

It is the forward pass of `nn.SS2D` on the CPU in float32; for everything else, and in compiled and exported graphs, the
layer is composed of other operators. It saves the overhead of several calls, and of libraries that rearrange small
matrices before they multiply them. Weights are read in place at every call.

Source: Liu et al., "VMamba: Visual State Space Model" (2024), figure 3.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._backends import serves
from mtlkit.operators._launch import MAX_STATES, argument, check, fresh
from mtlkit.operators._operator import direct, wants_grad
from mtlkit.operators.ss2d.orders import DIRECTIONS

KERNELS = (3, 5, 7)
GATES: dict[str | None, int] = {None: 0, "silu": 1, "linear": 2}  # as in csrc/cpu/ss2d_layer.h


class Weights(NamedTuple):
    """C channels of the layer, D of the scan, R rank of the time step, N states, M = R + 2 N.

    Weights of a part that the layer does not have are None, and so are missing biases and scales of the norm.
    """

    in_weight: Tensor  # (2 D, C), without a gate (D, C)
    in_bias: Tensor | None
    conv_weight: Tensor | None  # (D, 1, k, k)
    conv_bias: Tensor | None  # (D,)
    x_proj_weight: Tensor  # (4, M, D)
    dt_weight: Tensor  # (4, D, R)
    dt_bias: Tensor  # (4, D)
    A_logs: Tensor  # (4 D, N)
    Ds: Tensor  # (4 D,)
    norm_weight: Tensor | None  # (D,)
    norm_bias: Tensor | None  # (D,)
    out_weight: Tensor  # (C, D)
    out_bias: Tensor | None  # (C,)


class Options(NamedTuple):
    """Which parts a layer has."""

    gate: str | None  # of GATES
    kernel: int  # rows and columns of the convolution, of KERNELS; 0 without one
    norm: bool
    eps: float


def _fit(x: Tensor, weights: Weights, options: Options) -> bool:
    """Whether all weights are given and their shapes fit together."""
    dt_weight, A_logs = weights.dt_weight, weights.A_logs
    if dt_weight is None or A_logs is None or dt_weight.dim() != 3 or A_logs.dim() != 2:
        return False
    model, (_, inner, rank), states = x.shape[-1], dt_weight.shape, A_logs.shape[1]
    wide = inner if options.gate is None else 2 * inner
    needed = (
        (weights.in_weight, (wide, model)),
        (weights.x_proj_weight, (DIRECTIONS, rank + 2 * states, inner)),
        (dt_weight, (DIRECTIONS, inner, rank)),
        (weights.dt_bias, (DIRECTIONS, inner)),
        (A_logs, (DIRECTIONS * inner, states)),
        (weights.Ds, (DIRECTIONS * inner,)),
        (weights.out_weight, (model, inner)),
        *(((weights.conv_weight, (inner, 1, options.kernel, options.kernel)),) if options.kernel else ()),
    )
    optional = (
        (weights.in_bias, wide),
        (weights.conv_bias, inner),
        (weights.norm_weight, inner),
        (weights.norm_bias, inner),
        (weights.out_bias, model),
    )
    return (
        options.kernel in (0, *KERNELS)
        and inner >= 1
        and rank >= 1
        and 1 <= states <= MAX_STATES
        and all(t is not None and t.shape == shape for t, shape in needed)
        and all(t is None or t.shape == (size,) for t, size in optional)
    )


def can_run(x: Tensor, weights: Weights, options: Options) -> bool:
    """Whether `ss2d_layer` can replace the composed layer.

    Args:
        x: a floating-point image, (B, H, W, C).
        weights: weights of the layer; if they do not fit together, the composed layer raises the error.
        options: of the layer.
    """
    tensors = (x, *weights)
    return (
        not wants_grad(tensors)
        and direct(tensors)
        and x.numel() > 0
        and serves("cpu", x.device)
        and _fit(x, weights, options)
    )


def ss2d_layer(x: Tensor, weights: Weights, options: Options) -> Tensor:
    """The layer's output, (B, H, W, C), contiguous; call it only if `can_run` is true.

    Args:
        x: image, (B, H, W, C).
        weights: of the layer.
        options: of the layer.
    """
    x = x.contiguous()
    batch, height, width, model = x.shape
    _, inner, rank = weights.dt_weight.shape
    y = fresh(torch.empty_like(x))
    conv, x_proj_weight = (
        weights.conv_weight,
        weights.x_proj_weight.flatten(0, 1),
    )  # keeps copies alive until the call returns
    status = _native.C.ss2d_layer_forward(
        sizes=(batch, inner, height, width, weights.A_logs.shape[1], rank),
        x=x.data_ptr(),
        in_weight=argument(weights.in_weight),
        in_bias=argument(weights.in_bias),
        conv_weight=None if conv is None else argument(conv[:, 0]),
        conv_bias=argument(weights.conv_bias),
        x_proj_weight=argument(x_proj_weight),
        dt_weight=argument(weights.dt_weight),
        dt_bias=argument(weights.dt_bias),
        A_logs=argument(weights.A_logs),
        Ds=argument(weights.Ds),
        norm=options.norm,
        norm_weight=argument(weights.norm_weight),
        norm_bias=argument(weights.norm_bias),
        eps=options.eps,
        gate=GATES[options.gate],
        out_weight=argument(weights.out_weight),
        out_bias=argument(weights.out_bias),
        y=y.data_ptr(),
        model=model,
        kernel=options.kernel,
        threads=torch.get_num_threads(),
    )
    check(status)
    return y
