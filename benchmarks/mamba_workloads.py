"""Rows defined by a function and its tensors, and the shapes of Mamba blocks in published networks."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from providers import FORWARD
from torch import Tensor

from mtlkit._accuracy import largest_error
from mtlkit.testing import assert_accurate

Results = dict[str, Tensor]


class Sequences(NamedTuple):
    """Sequences of L tokens and D channels."""

    B: int
    D: int
    L: int


# Vision Mamba's blocks at 224 x 224 pixels, a stage of U-Mamba, a stage of SegMamba at 64 x 64 x 64 voxels.
SHAPES = {
    "vim_tiny_batch4": Sequences(4, 384, 197),
    "u_mamba_64x64": Sequences(1, 192, 4096),
    "segmamba_32x32x32": Sequences(1, 96, 32768),
}


class Row(NamedTuple):
    """A call: the function of tensors by name, and the tensors."""

    function: Callable[..., Tensor]
    tensors: dict[str, Tensor]

    def run(self, direction: str, dtype: torch.dtype | None = None) -> Results:
        """The output and, for the direction `forward_backward`, every gradient, by name."""
        tensors = {name: t.detach().to(dtype or t.dtype) for name, t in self.tensors.items()}
        if direction == FORWARD:
            with torch.no_grad():
                return {"y": self.function(**tensors)}
        y = self.function(**{name: t.requires_grad_() for name, t in tensors.items()})
        dy = torch.randn(1, 1, y.shape[-1], generator=torch.Generator().manual_seed(1)).to(y).expand_as(y)
        gradients = torch.autograd.grad(y, list(tensors.values()), torch.empty_like(y).copy_(dy))
        return {"y": y.detach(), **dict(zip(tensors, gradients, strict=True))}


def normal(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(sum(size)))


def measured(
    measure: Callable, op: str, shape: str, direction: str, provider: str, row: Row, exact: Row, unit: tuple[str, float]
) -> None:
    """Times a row after comparing its results with those of another row in float64; for `unit` see `Measure`."""
    wanted = exact.run(direction, torch.float64)

    def check(got: Results) -> tuple[float, float]:
        errors = [assert_accurate(key, value, wanted[key], gradient=key != "y") for key, value in got.items()]
        return max(errors), largest_error(got["y"], wanted["y"])

    names = {"op": op, "shape": shape, "direction": direction, "provider": provider}
    measure(lambda: row.run(direction), check, unit=unit, **names)


def moved(elements: int) -> tuple[str, int]:
    """The unit of a call that reads and writes at least this many float32 elements."""
    return "bytes", 4 * elements
