"""Linear layers over the channels of every pixel or token, channels-last.

In float32 on a CPU they run in mtlkit's kernels, forward and backward. Everything else, and compiled and exported
graphs, uses PyTorch: in float32 on a CPU a 1 x 1 convolution in oneDNN, which with two threads of an AMD EPYC with
AVX-512 is 1.3 to 2 times as fast as F.linear for the projections of MedMamba-T on 14 x 14 pixels and more.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from mtlkit import _native
from mtlkit.operators._backends import serves
from mtlkit.operators._launch import address, argument, check, fresh
from mtlkit.operators._operator import direct, plain

CPU = torch.device("cpu")


def pixel_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear for an image or a sequence: (B, H, W, C_in) to (B, H, W, C_out), or (B, L, C_in) to (B, L, C_out)."""
    if by_kernels(x, weight, bias) and _fit(x, weight, bias):
        return _PixelLinear.apply(1, x, weight, bias)[0]  # pyright: ignore[reportIndexIssue] - a tuple
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.dim() not in (3, 4):
        return F.linear(x, weight, bias)
    if x.dim() == 3:
        return pixel_linear(x[:, None], weight, bias)[:, 0]
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


def pixel_linear_halves(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`pixel_linear(x, weight, bias).chunk(2, -1)`.

    In the kernels, the halves have separate memory, so that each can be freed when it is no longer needed.

    Args:
        x: as for `pixel_linear`.
        weight: (2 D, C_in).
        bias: (2 D,).
    """
    if weight.shape[0] % 2 == 0 and by_kernels(x, weight, bias) and _fit(x, weight, bias):
        return _PixelLinear.apply(2, x, weight, bias)  # pyright: ignore[reportReturnType] - a tuple
    first, second = pixel_linear(x, weight, bias).chunk(2, -1)
    return first, second


class PixelLinear(nn.Linear):
    """An nn.Linear for images and sequences, with the same parameters: (B, ..., C_in) to (B, ..., C_out)."""

    def forward(self, x: Tensor) -> Tensor:
        """Projects the channels of every pixel."""
        return pixel_linear(x, self.weight, self.bias)


# --- the kernels ------------------------------------------------------------------------------------------------------


def by_kernels(*tensors: Tensor | None) -> bool:
    """Whether the kernels may run a call; they know first and second derivatives, but no forward-mode ones."""
    return direct(tensors) and forward_ad._current_level < 0 and serves("cpu", CPU)


def _fit(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernels run a call of these shapes."""
    return (
        x.dim() in (3, 4)
        and x.is_contiguous()
        and x.numel() > 0
        and weight.shape[1:] == x.shape[-1:]
        and weight.shape[0] > 0
        and (bias is None or bias.shape == weight.shape[:1])
    )


def _arguments(x: Tensor, weight: Tensor) -> dict[str, object]:
    """The arguments shared by the forward and backward kernels."""
    outputs, inputs = weight.shape
    return {
        "sizes": (x.numel() // inputs, inputs, outputs),
        "x": address(x),
        "weight": argument(weight),
        "threads": torch.get_num_threads(),
    }


class _PixelLinear(torch.autograd.Function):
    """Some outputs, each by an equal part of the rows of the weight."""

    @staticmethod
    def forward(ctx: Any, parts: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        ctx.parts = parts
        ctx.save_for_backward(x, weight)
        ctx.set_materialize_grads(False)
        outputs = weight.shape[0] // parts
        biases = [None] * parts if bias is None else bias.chunk(parts)
        ys = []
        for rows, offset in zip(weight.chunk(parts), biases, strict=True):
            y = fresh(x.new_empty(*x.shape[:-1], outputs))
            check(_native.C.linear_forward(**_arguments(x, rows), bias=argument(offset), y=address(y)))
            ys.append(y)
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():  # for second derivatives
            return None, *_gradients_in_torch(x, weight, dys, wanted)
        dx, dweight, dbias = (
            fresh(torch.empty(shape)) if want else None
            for shape, want in zip((x.shape, weight.shape, weight.shape[:1]), wanted, strict=True)
        )
        outputs, add = weight.shape[0] // ctx.parts, False
        for i, dy in enumerate(dys):
            part = slice(i * outputs, (i + 1) * outputs)
            of_weight, of_bias = (None if t is None else t[part] for t in (dweight, dbias))
            if dy is None:
                for t in (of_weight, of_bias):
                    if t is not None:
                        t.zero_()
                continue
            dy = plain(dy).contiguous()
            status = _native.C.linear_backward(
                **_arguments(x, weight[part]),
                dy=address(dy),
                dx=address(dx),
                dweight=address(of_weight),
                dbias=address(of_bias),
                add=add,
            )
            check(status)
            add = True
        return None, dx, dweight, dbias


def _gradients_in_torch(
    x: Tensor, weight: Tensor, dys: Sequence[Tensor | None], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight and bias by operators that autograd can differentiate again."""
    size = weight.shape[0] // len(dys)
    dy = torch.cat([x.new_zeros(*x.shape[:-1], size) if t is None else t for t in dys], -1)
    rows = dy.flatten(0, -2)  # (pixels, C_out)
    return (
        dy @ weight if wanted[0] else None,
        rows.mT @ x.flatten(0, -2) if wanted[1] else None,
        rows.sum(0) if wanted[2] else None,
    )
