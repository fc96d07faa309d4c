"""reduce by the CUDA kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators import _launch
from mtlkit.operators._launch import address, argument, as_float, check_cuda, launching, single_precision_only
from mtlkit.operators.interaction.maps import new_map, rows_of
from mtlkit.operators.interaction.reduce.signature import Inputs, Options, new_outputs

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # dtypes of signs, by their size in bytes


def supports(inputs: Inputs, _options: Options) -> str | None:
    """Calls without float64."""
    return single_precision_only(inputs)


def _sizes(inputs: Inputs) -> tuple[int, ...]:
    return (*inputs.x.shape, 0 if inputs.weight is None else inputs.weight.shape[0])


def _plan(inputs: Inputs):
    """How the kernels divide the work."""
    return _native.C.cuda_interaction_plan(sizes=_sizes(inputs), multiprocessors=_launch.gpu(inputs.x.device)[0])


def _new_signs(inputs: Inputs) -> Tensor:
    """A buffer for the signs of the projection; only its number of rows must be known while tracing."""
    x, weight, *_ = inputs
    shape, dtype = (0,), torch.uint8
    if weight is not None:
        plan = _native.C.cuda_interaction_plan(sizes=(1, 1, 1, 1, int(weight.shape[0])), multiprocessors=1)
        shape, dtype = (x.shape[0], plan.sign_words, x.shape[2] * x.shape[3]), _WORDS[plan.sign_bytes]
    return torch.empty(shape, dtype=dtype, device=x.device)


def _new_softmax(inputs: Inputs) -> Tensor:
    x = inputs.x
    return torch.empty(x.shape[0], 2 * (inputs.attn is not None), dtype=torch.float32, device=x.device)


def room(inputs: Inputs, _options: Options) -> tuple[Tensor, Tensor]:
    """The largest logit and the sum of the softmax, (B, 2), and the signs of the projection; empty if not needed."""
    softmax = _new_softmax(inputs)
    inputs = inputs if inputs.attn is None else inputs._replace(weight=None)  # attention recomputes them
    return softmax, _new_signs(inputs)


def _arguments(
    inputs: Inputs,
    x: Tensor,
    parameters: list[Tensor | None],
    mean: Tensor,
    pooled: Tensor,
    softmax: Tensor,
    signs: Tensor | None,
) -> dict[str, object]:
    """The arguments shared by the forward and backward kernels: rows of the map, and parameters in float32."""
    weight, bias, attn = map(address, parameters)
    return {
        "sizes": _sizes(inputs),
        "x": argument(x),
        "weight": weight,
        "bias": bias,
        "attn": attn,
        "mean": address(mean),
        "pooled": address(pooled),
        "softmax": address(softmax),
        "signs": address(signs),
    }


def forward(inputs: Inputs, options: Options, save: bool) -> tuple[Tensor, ...]:
    """Mean, variance, energy and pooled projection, and what the backward pass needs."""
    mean, variance, energy, pooled = sums = new_outputs(inputs, options)
    kept = room(inputs, options) if save else ()
    softmax, signs = kept or (_new_softmax(inputs), None)
    B, C, *_, P = _sizes(inputs)
    with launching(inputs.x) as stream:
        rows, parameters = rows_of(inputs.x), [None if t is None else as_float(t) for t in inputs[1:]]
        tiles = _plan(inputs).tiles
        parts = torch.empty(B, tiles, 2 * C + P + 3, dtype=torch.float32, device=inputs.x.device)
        status = _native.C.cuda_interaction_reduce_forward(
            **_arguments(inputs, rows, parameters, mean, pooled, softmax, signs),
            variance=address(variance),
            energy=address(energy),
            parts=address(parts),
            stream=stream,
        )
        check_cuda(status)
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
    x, attn = inputs.x, inputs.attn
    B, C, H, W, P = _sizes(inputs)

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    with launching(x) as stream:
        dmean, dvariance, denergy, dpooled = (None if g is None else as_float(g) for g in grads)
        denergy = denergy if options.energy else None
        dpooled = dpooled if inputs.weight is not None else None
        if dpooled is None and not wanted[0]:
            return (None,) * len(inputs)
        rows, parameters = rows_of(x), [None if t is None else as_float(t) for t in inputs[1:]]
        dx = new_map(x) if wanted[0] else None
        fill = torch.empty if dpooled is not None else torch.zeros
        dweight, dbias, dattn = (
            fill(t.shape, dtype=torch.float32, device=x.device) if t is not None and want else None
            for t, want in zip(inputs[1:], wanted[1:], strict=True)
        )
        plan = _plan(inputs)
        reached = logits = parts = None
        if dpooled is not None and attn is not None:
            signs, reached, logits = _new_signs(inputs), new(B, plan.row_blocks, H * W), new(B, H * W)
        if dpooled is not None and any(t is not None for t in (dweight, dbias, dattn)):
            parts = new(plan.shares, P * C + P + C)
        dy_rows, dx_rows = (None if t is None else t.flatten(2) for t in (dy, dx))
        factors = None if dy is None or factors is None else factors.contiguous()
        status = _native.C.cuda_interaction_reduce_backward(
            **_arguments(inputs, rows, parameters, mean, pooled, softmax, signs),
            shares=plan.shares,
            dy=argument(dy_rows),
            factors=address(factors),
            dmean=address(dmean),
            dvariance=address(dvariance),
            denergy=address(denergy),
            dpooled=address(dpooled),
            reached=address(reached),
            logits=address(logits),
            parts=address(parts),
            dx=argument(dx_rows),
            dweight=address(dweight),
            dbias=address(dbias),
            dattn=address(dattn),
            stream=stream,
        )
        check_cuda(status)
    return dx, dweight, dbias, dattn
