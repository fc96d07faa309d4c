"""reduce by the C++ kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import address, argument, check, computed, fresh
from mtlkit.operators.interaction.maps import new_map, rows_argument
from mtlkit.operators.interaction.reduce.signature import Inputs, Options, new_outputs


def supports(_inputs: Inputs, _options: Options) -> None:
    """Every call."""


def _signs_shape(inputs: Inputs, dtype: torch.dtype) -> tuple[int, int, int]:
    """Number of 16-bit words for the signs of the projection, in the layout of the instruction set in use."""
    x, weight, _, attn = inputs
    if weight is None or attn is not None or _native.C is None:
        return 0, 0, 0
    block = _native.C.interaction_block()
    lanes = block.bytes // dtype.itemsize
    return x.shape[0], -(-weight.shape[0] // block.rows) * block.rows, -(-(x.shape[2] * x.shape[3]) // lanes)


def _new_softmax(inputs: Inputs, options: Options) -> Tensor:
    """The largest logit and the sum of the softmax, (B, 2); empty without attention."""
    x = inputs.x
    return torch.empty(x.shape[0], 0 if inputs.attn is None else 2, dtype=options.dtype, device=x.device)


def room(inputs: Inputs, options: Options) -> tuple[Tensor, Tensor]:
    """The largest logit and the sum of the softmax, and the signs of the projection; empty if not needed."""
    signs = torch.empty(_signs_shape(inputs, options.dtype), dtype=torch.int16, device=inputs.x.device)
    return _new_softmax(inputs, options), signs


def _arguments(
    inputs: Inputs, rows: Tensor, mean: Tensor, pooled: Tensor, softmax: Tensor, signs: Tensor | None
) -> dict[str, object]:
    """The arguments shared by the forward and backward kernels; rows are the map as (B, C, L)."""
    x, weight, bias, attn = inputs
    return {
        "sizes": (*x.shape, 0 if weight is None else weight.shape[0]),
        "x": rows_argument(rows),
        "weight": argument(weight),
        "bias": argument(bias),
        "attn": argument(attn),
        "mean": address(mean),
        "pooled": address(pooled),
        "softmax": address(softmax),
        "signs": address(signs),
        "use_double": mean.dtype == torch.float64,
        "threads": torch.get_num_threads(),
    }


def forward(inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
    """Mean, variance, energy and pooled projection, and what the backward pass needs."""
    mean, variance, energy, pooled = sums = new_outputs(inputs, options)
    kept = room(inputs, options) if save else ()
    softmax, signs = kept or (_new_softmax(inputs, options), None)
    rows = inputs.x if inputs.x.is_contiguous() else inputs.x.flatten(2)
    arguments = _arguments(inputs, rows, mean, pooled, softmax, signs)
    check(_native.C.interaction_reduce_forward(**arguments, variance=address(variance), energy=address(energy)))
    return (*sums, *kept) if save else sums


def backward(
    inputs: Inputs, options: Options, kept: Sequence[Tensor], grads: Sequence[Tensor | None], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of map and projection."""
    return backward_with(inputs, options, kept, grads, None, None, wanted)


def backward_with(
    inputs: Inputs,
    options: Options,
    kept: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    dy: Tensor | None,
    factors: Tensor | None,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Like `backward`, and adds dy times the factors (B, C) to the gradient of the map in the same pass."""
    mean, pooled, softmax, signs = kept
    dmean, dvariance, denergy, dpooled = (None if g is None else computed(g, options.dtype) for g in grads)
    denergy = denergy if options.energy else None
    dpooled = dpooled if inputs.weight is not None else None
    if dpooled is None and not wanted[0]:
        return (None,) * len(inputs)
    dx = fresh(new_map(inputs.x)) if wanted[0] else None
    new = torch.empty if dpooled is not None else torch.zeros
    dweight, dbias, dattn = (
        new(t.shape, dtype=options.dtype) if t is not None and want else None
        for t, want in zip(inputs[1:], wanted[1:], strict=True)
    )
    if signs.shape != _signs_shape(inputs, options.dtype):
        signs = None  # the forward pass ran on another instruction set
    rows = inputs.x if inputs.x.is_contiguous() else inputs.x.flatten(2)
    dy_rows = dy if dy is None or dy.is_contiguous() else dy.flatten(2)
    factors = None if dy is None or factors is None else factors.contiguous()
    status = _native.C.interaction_reduce_backward(
        **_arguments(inputs, rows, mean, pooled, softmax, signs),
        dy=None if dy_rows is None else rows_argument(dy_rows),
        factors=address(factors),
        dmean=address(dmean),
        dvariance=address(dvariance),
        denergy=address(denergy),
        dpooled=address(dpooled),
        dx=None if dx is None else rows_argument(dx),
        dweight=address(dweight),
        dbias=address(dbias),
        dattn=address(dattn),
    )
    check(status)
    return dx, dweight, dbias, dattn
