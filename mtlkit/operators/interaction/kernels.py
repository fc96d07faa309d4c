"""The two passes of task interaction by the kernels: `reduce` gathers sums over a map, `scale` scales its channels.

A map on a CPU is for the C++ kernels, one on a GPU for those in Triton.

The gradient of a map is that of what was gathered plus that of what was scaled. One pass writes both: `reduce` hands
the map on, `scale` returns the gradient of its output unscaled as that of its input, and leaves the factors to the
backward pass of `reduce`, which is to read the map anyway. Where calls are traced, each pass has a gradient of its own.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from mtlkit import _native
from mtlkit.operators._launch import address, argument, check, fresh
from mtlkit.operators._operator import first_order_only, like, traced, wants_grad


class Map(NamedTuple):
    """A map on its way from `reduce` to `scale`."""

    x: Tensor  # (B, C, H, W)
    left: list[Tensor] | None = None  # where `scale` leaves its factors; None where it has a gradient of its own


class Reduced(NamedTuple):
    """What one pass over a map gathers, in the type of computation, and the map for the pass to come."""

    mean: Tensor  # (B, C)
    variance: Tensor  # (B, C), of the population
    energy: Tensor | None  # (B,), where it was asked for
    pooled: Tensor | None  # (B, P), where there is a projection
    map: Map


# --- launch -----------------------------------------------------------------------------------------------------------


def triton_kernels(x: Tensor) -> ModuleType | None:
    """The Triton kernels, which serve a map on a GPU; None for one on a CPU."""
    if x.device.type == "cpu":
        return None
    from mtlkit.kernels import interaction  # not before it is needed: it loads Triton

    return interaction


def _by_pixels(x: Tensor) -> bool:
    """Whether the pixels of (B, C, L) lie side by side, rather than the channels."""
    return x.stride(2) == 1 and (x.stride(1) != 1 or x.shape[2] > 1)


def _rows(x: Tensor) -> Tensor:
    """(B, C, L) with the pixels or the channels side by side; no copy where strides allow."""
    rows = x.flatten(2)
    return rows if 1 in rows.stride()[1:] else rows.contiguous()


def _new_map(x: Tensor) -> Tensor:
    """NCHW or channels-last, whichever is nearer to x."""
    channels_last = not _by_pixels(_rows(x))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty_like(x, memory_format=layout)


def _rows_beside(dy: Tensor, x: Tensor) -> Tensor:
    """(B, C, L) of dy with those side by side that are so in the rows x; no copy where they are."""
    rows = _rows(dy)
    if _by_pixels(rows) == _by_pixels(x):
        return rows
    return rows.contiguous() if _by_pixels(x) else rows.transpose(1, 2).contiguous().transpose(1, 2)


def _signs_shape(x: Tensor, weight: Tensor, dtype: torch.dtype) -> tuple[int, int, int]:
    """How many words of 16 bits the signs of the projection take, in the layout of the instruction set in use."""
    rows, vector_bytes = _native.C.interaction_block()
    lanes = vector_bytes // dtype.itemsize
    return x.shape[0], -(-weight.shape[0] // rows) * rows, -(-(x.shape[2] * x.shape[3]) // lanes)


def _new_sums(x, weight, attn, energy: bool, dtype: torch.dtype, save: bool) -> tuple[Tensor, ...]:
    """What `_reduce_forward` returns, unset; empty what is not wanted."""
    batch, channels = x.shape[:2]
    projected = 0 if weight is None else weight.shape[0]
    shapes = (
        (batch, channels),
        (batch, channels),
        (batch * energy,),
        (batch, projected),
        (batch, 2 * (attn is not None)),
    )
    sums = tuple(x.new_empty(shape, dtype=dtype) for shape in shapes)
    if triton := triton_kernels(x):
        return *sums, triton.room_for_signs(x, weight, attn, save)
    signs = _signs_shape(x, weight, dtype) if save and weight is not None and attn is None else (0, 0, 0)
    return *sums, x.new_empty(signs, dtype=torch.int16)


def _reduce_arguments(x, rows, weight, bias, attn, mean, pooled, softmax, signs) -> tuple:
    return (
        (*x.shape, 0 if weight is None else weight.shape[0]),
        (argument(rows), argument(weight), argument(bias), argument(attn)),
        *(address(t) for t in (mean, pooled, softmax, signs)),
        mean.dtype == torch.float64,
        torch.get_num_threads(),
    )


def _reduce_forward(x, weight, bias, attn, energy: bool, dtype: torch.dtype, save: bool) -> tuple[Tensor, ...]:
    """The kernel: mean, variance, energy, pooled projection, and two for the backward pass.

    These are a softmax's largest logit and sum, or if `save` a bit for the sign of each element of the projection.
    """
    if triton := triton_kernels(x):
        return triton.reduce_forward(x, weight, bias, attn, energy, save)
    mean, variance, energies, pooled, softmax, signs = sums = _new_sums(x, weight, attn, energy, dtype, save)
    if x.shape[0] > 0:
        rows = x.flatten(2)
        arguments = _reduce_arguments(x, rows, weight, bias, attn, mean, pooled, softmax, signs)
        check(_native.C.interaction_reduce_forward(*arguments, address(variance), address(energies)))
    return sums


def _scale_forward(x: Tensor, factors: Tensor) -> Tensor:
    """The kernel: x times a factor for each channel."""
    if triton := triton_kernels(x):
        return triton.scale_forward(x, factors)
    y = fresh(_new_map(x))
    if x.shape[0] > 0:
        rows, factors = _rows(x), factors.contiguous()
        use_double = factors.dtype == torch.float64
        arguments = (tuple(x.shape), argument(rows), use_double, torch.get_num_threads(), address(factors))
        check(_native.C.interaction_scale_forward(*arguments, argument(y.flatten(2))))
    return y


# --- backward ---------------------------------------------------------------------------------------------------------


def _reduce_backward(
    x, weight, bias, attn, mean, pooled, softmax, signs, sums: tuple, dy, factors, wanted: tuple
) -> list[Tensor | None]:
    """The kernel: the gradients of x, weight, bias and attn as far as they are wanted.

    `sums` are the gradients of mean, variance, energy and pooled projection, None for zeros. Where dy is given,
    dy times the factors adds to the gradient of x.
    """
    dmean, dvariance, denergy, dpooled = (None if g is None else g.to(mean.dtype).contiguous() for g in sums)
    inputs = (x, weight, bias, attn)
    if x.shape[0] == 0 or (dpooled is None and not wanted[0]):
        return [torch.zeros_like(t) if want else None for t, want in zip(inputs, wanted, strict=True)]
    if triton := triton_kernels(x):
        kept = (mean, pooled, softmax, signs)
        gradients = triton.reduce_backward(*inputs, *kept, dmean, dvariance, denergy, dpooled, dy, factors, wanted[0])
        return [_wanted(g, t, want) for g, t, want in zip(gradients, inputs, wanted, strict=True)]
    new = torch.empty if dpooled is not None else torch.zeros
    dx = fresh(_new_map(x)) if wanted[0] else None
    parameters = [
        new(t.shape, dtype=mean.dtype) if want else None for t, want in zip(inputs[1:], wanted[1:], strict=True)
    ]
    rows = x.flatten(2)
    dy, dx_rows = (None if t is None else t.flatten(2) for t in (dy, dx))
    factors = None if dy is None else factors.contiguous()
    if signs.numel() > 0 and signs.shape != _signs_shape(x, weight, mean.dtype):
        signs = None  # the forward pass ran on another instruction set
    status = _native.C.interaction_reduce_backward(
        *_reduce_arguments(x, rows, weight, bias, attn, mean, pooled, softmax, signs),
        argument(dy),
        *(address(t) for t in (factors, dmean, dvariance, denergy, dpooled)),
        argument(dx_rows),
        *(address(t) for t in parameters),
    )
    check(status)
    return [dx, *(None if g is None else like(g, t) for g, t in zip(parameters, inputs[1:], strict=True))]


def _wanted(gradient: Tensor | None, tensor: Tensor | None, wanted: bool) -> Tensor | None:
    """A gradient as autograd expects it: zeros where none came, None where none is wanted."""
    if not wanted:
        return None
    return torch.zeros_like(tensor) if gradient is None else like(gradient, tensor)


def _scale_backward(dy: Tensor, x: Tensor, factors: Tensor) -> Tensor:
    """The kernel: the gradient of the factors."""
    if triton := triton_kernels(x):
        return triton.scale_backward(dy.to(x.dtype), x)
    if x.shape[0] == 0:
        return torch.zeros_like(factors)
    dfactors = torch.empty(factors.shape, dtype=factors.dtype)
    rows = _rows(x)
    dy_rows = _rows_beside(dy.to(x.dtype), rows)
    use_double = factors.dtype == torch.float64
    arguments = (tuple(x.shape), argument(rows), use_double, torch.get_num_threads(), argument(dy_rows))
    check(_native.C.interaction_scale_backward(*arguments, address(dfactors)))
    return dfactors


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, left, energy, dtype, save, x, weight, bias, attn):
        *sums, softmax, signs = _reduce_forward(x, weight, bias, attn, energy, dtype, save)
        ctx.left = left
        ctx.save_for_backward(x, weight, bias, attn, sums[0], sums[3], softmax, signs)
        ctx.set_materialize_grads(False)
        return *sums, x.view_as(x)

    @staticmethod
    def backward(ctx, dmean, dvariance, denergy, dpooled, dy):
        saved, sums = ctx.saved_tensors, (dmean, dvariance, denergy, dpooled)
        factors = None if dy is None else ctx.left[0]
        gradients = _reduce_backward(*saved, sums, dy, factors, ctx.needs_input_grad[4:])
        return None, None, None, None, *first_order_only("task_interaction", gradients, (*sums, dy, *saved[:4]))


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, left, x, factors):
        ctx.left = left
        ctx.save_for_backward(x, factors)
        return _scale_forward(x, factors)

    @staticmethod
    def backward(ctx, dy):
        x, factors = ctx.saved_tensors
        dx = dfactors = None
        if ctx.needs_input_grad[1]:
            if ctx.left is None:
                dx = _scale_forward(dy, factors)
            else:
                # with its graph, which leads to the node that holds `left`, no step's memory would ever be free
                ctx.left[:] = [factors.detach()]
                dx = dy
        if ctx.needs_input_grad[2]:
            dfactors = _scale_backward(dy, x, factors)
        return None, *first_order_only("task_interaction", [dx, dfactors], (dy, x, factors))


# --- for the dispatcher: torch.compile, torch.export ------------------------------------------------------------------


@torch.library.custom_op("mtlkit::interaction_reduce", mutates_args=(), device_types=("cpu", "cuda"))
def _op_reduce(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    attn: Tensor | None,
    energy: bool,
    dtype: torch.dtype,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _reduce_forward(x, weight, bias, attn, energy, dtype, save)


@_op_reduce.register_fake
def _(x, weight, bias, attn, energy, dtype, save):
    return _new_sums(x, weight, attn, energy, dtype, save)


@torch.library.custom_op("mtlkit::interaction_reduce_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _op_reduce_backward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    attn: Tensor | None,
    mean: Tensor,
    pooled: Tensor,
    softmax: Tensor,
    signs: Tensor,
    dmean: Tensor,
    dvariance: Tensor,
    denergy: Tensor,
    dpooled: Tensor,
) -> list[Tensor]:
    sums = (dmean, dvariance, denergy if denergy.numel() else None, dpooled if weight is not None else None)
    wanted = tuple(t is not None for t in (x, weight, bias, attn))
    gradients = _reduce_backward(x, weight, bias, attn, mean, pooled, softmax, signs, sums, None, None, wanted)
    return [g for g in gradients if g is not None]


@_op_reduce_backward.register_fake
def _(x, weight, bias, attn, *_sums):
    return [_new_map(x), *(torch.empty_like(t) for t in (weight, bias, attn) if t is not None)]


def _op_reduce_setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:4], output[0], *output[3:])


def _op_reduce_grad(ctx, dmean, dvariance, denergy, dpooled, _dsoftmax, _dsigns):
    saved = ctx.saved_tensors
    gradients = iter(_op_reduce_backward(*saved, dmean, dvariance, denergy, dpooled))
    return *(None if t is None else next(gradients) for t in saved[:4]), None, None, None


_op_reduce.register_autograd(_op_reduce_grad, setup_context=_op_reduce_setup)


@torch.library.custom_op("mtlkit::interaction_scale", mutates_args=(), device_types=("cpu", "cuda"))
def _op_scale(x: Tensor, factors: Tensor) -> Tensor:
    return _scale_forward(x, factors)


@_op_scale.register_fake
def _(x, factors):
    return _new_map(x)


@torch.library.custom_op("mtlkit::interaction_scale_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _op_scale_backward(dy: Tensor, x: Tensor, factors: Tensor) -> Tensor:
    return _scale_backward(dy, x, factors)


@_op_scale_backward.register_fake
def _(dy, x, factors):
    return torch.empty_like(factors, memory_format=torch.contiguous_format)


def _op_scale_setup(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _op_scale_grad(ctx, dy):
    x, factors = ctx.saved_tensors
    # plain PyTorch, so that the compiler can add it to the other gradients of x in the same pass
    dx = (dy * factors[:, :, None, None]).to(x.dtype)
    return dx, _op_scale_backward(dy, x, factors)


_op_scale.register_autograd(_op_scale_grad, setup_context=_op_scale_setup)


# --- for mtlkit.ops.interaction ---------------------------------------------------------------------------------------


def reduce(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, attn: Tensor | None, energy: bool, dtype: torch.dtype
) -> Reduced:
    """One pass over the map: weight is (P, C), attn (C,)."""
    save = wants_grad((x, weight, bias, attn))
    if traced((x, weight, bias, attn)):
        mean, variance, energies, pooled, *_ = _op_reduce(x, weight, bias, attn, energy, dtype, save)
        passed_on = Map(x)
    elif not save:  # a Function costs as much as a small kernel
        mean, variance, energies, pooled, *_ = _reduce_forward(x, weight, bias, attn, energy, dtype, save)
        passed_on = Map(x)
    else:
        left = []
        mean, variance, energies, pooled, x = _Reduce.apply(left, energy, dtype, save, x, weight, bias, attn)
        passed_on = Map(x, left)
    energies, pooled = energies if energy else None, None if weight is None else pooled
    return Reduced(mean, variance, energies, pooled, passed_on)


def scale(x: Map, factors: Tensor) -> Tensor:
    """The map times a factor (B, C) for each channel, in the dtype of the map. At most once for each `reduce`."""
    if traced((x.x, factors)):
        return _op_scale(x.x, factors)
    if not wants_grad((x.x, factors)):
        return _scale_forward(x.x, factors)
    return _Scale.apply(x.left, x.x, factors)
