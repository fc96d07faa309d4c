"""One policy for the accuracy of results, for tests, benchmarks and checks.

It compares with the reference in float64 by the relative error |got - exact| / |exact| in the 2-norm:

- float64 and float32 within fixed bounds;
- 16-bit within twice (output) or three times (gradients) the error that plain PyTorch makes in the same dtype, plus
  the dtype's own rounding;
- a gradient that is zero although the exact one is not always fails.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

FORWARD_BOUND = {torch.float64: 1e-12, torch.float32: 2e-6}
GRADIENT_BOUND = {torch.float64: 1e-11, torch.float32: 1e-5}
ROUNDING = {torch.bfloat16: 2.0**-9, torch.float16: 2.0**-12}
BLOCK = 1 << 17  # elements that are compared at a time


class Accuracy(NamedTuple):
    """The error of a result, its bound, and a sentence that says what is wrong, if anything.

    The error is NaN if the result cannot be compared.
    """

    error: float
    bound: float
    fault: str | None


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Returns |got - exact| / |exact| in the 2-norm, in float64; |got| if `exact` is 0.

    Example:
        >>> import torch
        >>> from mtlkit.testing import relative_error
        >>> relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
        0.1
    """
    norms = [torch.stack(((g - e).norm(), e.norm())) for g, e in _blocks(got, exact)]
    error, scale = torch.stack(norms).norm(dim=0).tolist()
    return error / (scale if scale > 0 else 1.0)


def largest_error(got: Tensor, exact: Tensor) -> float:
    """Returns the largest |got - exact|, in float64."""
    return torch.stack([(g - e).abs().max() for g, e in _blocks(got, exact)]).max().item()


def _blocks(got: Tensor, exact: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields both in float64, in blocks that stay in the caches: large temporaries would take most of the time."""
    blocks = (t.detach().flatten().split(BLOCK) for t in torch.broadcast_tensors(got, exact))
    return ((g.double(), e.double()) for g, e in zip(*blocks, strict=True))


def accuracy(
    name: str, got: Tensor | None, exact: Tensor, plain: Tensor | None = None, *, gradient: bool = False
) -> Accuracy:
    """Compares a result with the policy.

    Args:
        name: name of the result, for messages.
        got: the result under test.
        exact: the reference in float64.
        plain: result of plain PyTorch for the same 16-bit input; needed only for 16-bit results.
        gradient: whether the bounds for gradients apply.
    """
    nan = float("nan")
    if got is None:
        return Accuracy(nan, nan, f"{name}: there is no result")
    if got.shape != exact.shape:
        return Accuracy(nan, nan, f"{name}: expected shape {tuple(exact.shape)}, got {tuple(got.shape)}")
    if exact.numel() == 0:
        return Accuracy(0.0, 0.0, None)
    error = relative_error(got, exact)
    if got.dtype in ROUNDING:
        if plain is None:
            return Accuracy(error, nan, f"{name}: a 16-bit result is judged beside plain PyTorch's")
        bound = (3 if gradient else 2) * relative_error(plain, exact) + ROUNDING[got.dtype]
    else:
        bound = (GRADIENT_BOUND if gradient else FORWARD_BOUND)[got.dtype]
    fault = None
    if not error <= bound:  # NaN is not, either
        fault = f"{name}: relative error {error:.2e} is beyond {bound:.2e} ({got.dtype})"
    elif exact.abs().max() > 0 and not got.abs().max() > 0:
        fault = f"{name}: all zero, which the exact result is not"
    return Accuracy(error, bound, fault)


def assert_accurate(
    name: str, got: Tensor | None, exact: Tensor, plain: Tensor | None = None, *, gradient: bool = False
) -> float:
    """Raises unless `got` meets the policy; arguments as for `accuracy`.

    Returns:
        The relative error.

    Raises:
        AssertionError: the shape is wrong, a value is missing or wrongly zero, or the error exceeds the bound.

    Example:
        >>> import torch, mtlkit
        >>> from mtlkit.testing import SS2DShape, assert_accurate
        >>> arguments = SS2DShape(B=1, D=4, H=5, W=3, N=2, R=1).inputs()
        >>> with mtlkit.use_backend("reference"):
        ...     exact = mtlkit.ops.ss2d(**{name: t.double() for name, t in arguments.items()})
        >>> assert_accurate("output", mtlkit.ops.ss2d(**arguments), exact) < 2e-6
        True
    """
    found = accuracy(name, got, exact, plain, gradient=gradient)
    if found.fault is not None:
        raise AssertionError(found.fault)
    return found.error
