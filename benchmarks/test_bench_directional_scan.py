"""The scan along any orders: the four of SS2D and others of four directions, and one direction against the 1-D scan.

Each row's provider is its order. `pytest benchmarks -k directional --benchmark-only` measures these rows alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from providers import BOTH, FORWARD, MEDMAMBA_56
from torch import Tensor

from mtlkit.ops import directional_scan, orders, selective_scan, ss2d
from mtlkit.testing import SS2D_SHAPES, assert_accurate

Results = dict[str, Tensor]


class Row(NamedTuple):
    """A call: the function of tensors by name, and the tensors."""

    function: Callable[..., Tensor]
    tensors: dict[str, Tensor]
    directions: int

    def run(self, direction: str, dtype: torch.dtype = torch.float32) -> Results:
        """The output, and in the direction `forward_backward` every gradient, by name."""
        tensors = {name: t.to(dtype).requires_grad_() for name, t in self.tensors.items()}
        if direction == FORWARD:
            with torch.no_grad():
                return {"y": self.function(**tensors)}
        y = self.function(**tensors)
        gradients = torch.autograd.grad(y, list(tensors.values()), torch.ones_like(y))
        return {"y": y.detach(), **dict(zip(tensors, gradients, strict=True))}


def rows() -> dict[str, Callable[[], Row]]:
    """By group and provider, "four: random"."""

    def four(function: Callable[..., Tensor]) -> Callable[[], Row]:
        return lambda: Row(function, flat(), 4)

    def flat() -> dict[str, Tensor]:
        inputs = shape().inputs()
        return {name: t.flatten(-2) if name in ("u", "x_dbl") else t for name, t in inputs.items()}

    def along(order: Callable[[], orders.ScanOrder]) -> Callable[[], Row]:
        return four(lambda **tensors: directional_scan(**tensors, order=order()))

    def shape():
        return SS2D_SHAPES[MEDMAMBA_56]

    def image() -> tuple[int, int]:
        return shape().H, shape().W

    def windows() -> orders.ScanOrder:
        small, large = (orders.windows(*image(), window) for window in (2, 7))
        return orders.join(small, large, orders.reverse(small), orders.reverse(large))

    def random() -> orders.ScanOrder:
        tokens, generator = shape().H * shape().W, torch.Generator().manual_seed(0)
        return orders.permutation(torch.stack([torch.randperm(tokens, generator=generator) for _ in range(4)]))

    def one() -> dict[str, Tensor]:
        """The first direction of the four."""
        x, D = flat(), shape().D
        first = {"x_dbl": x["x_dbl"][:, :1], "A_logs": x["A_logs"][:D], "Ds": x["Ds"][:D]}
        return x | first | {name: x[name][:1] for name in ("dt_weight", "dt_bias")}

    def as_selective_scan(u, x_dbl, dt_weight, dt_bias, A_logs, Ds) -> Tensor:
        """Its time step is a matrix product of its own."""
        dts, B, C = x_dbl[:, 0].split((dt_weight.shape[2], *[A_logs.shape[1]] * 2), 1)
        return selective_scan(u, dt_weight[0] @ dts, -A_logs.exp(), B, C, Ds, None, dt_bias[0], True)

    fixed = random()
    length = shape().H * shape().W
    return {
        "four: ss2d": lambda: Row(ss2d, shape().inputs(), 4),
        "four: cross": along(lambda: orders.cross(*image())),
        "four: snake": along(lambda: orders.snake(*image())),
        "four: windows": along(windows),
        "four: random": along(lambda: fixed),
        "one: selective_scan": lambda: Row(as_selective_scan, one(), 1),
        "one: forward": lambda: Row(
            lambda **tensors: directional_scan(**tensors, order=orders.forward(length)), one(), 1
        ),
    }


@pytest.mark.parametrize("direction", [FORWARD, BOTH])
@pytest.mark.parametrize("name", ["four: ss2d", "four: cross", "four: snake", "four: windows", "four: random"])
def test_directions_of_an_image(name, direction, measure) -> None:
    measured(name, direction, measure)


@pytest.mark.parametrize("direction", [FORWARD, BOTH])
@pytest.mark.parametrize("name", ["one: selective_scan", "one: forward"])
def test_one_direction(name, direction, measure) -> None:
    measured(name, direction, measure)


def measured(name: str, direction: str, measure) -> None:
    row = rows()[name]()
    exact = row.run(direction, torch.float64)

    def check(got: Results) -> tuple[float, float]:
        errors = [assert_accurate(key, value, exact[key], gradient=key != "y") for key, value in got.items()]
        return max(errors), (got["y"].double() - exact["y"]).abs().max().item()

    group, provider = name.split(": ")
    s = SS2D_SHAPES[MEDMAMBA_56]
    measure(
        lambda: row.run(direction),
        check,
        group=f"directional_scan-{group}-{MEDMAMBA_56}-float32-{direction}",
        provider=provider,
        unit=("updates", row.directions * s.updates // 4),
        op="directional_scan",
        shape=MEDMAMBA_56,
        dtype="float32",
        direction=direction,
    )
