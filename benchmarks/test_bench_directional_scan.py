"""The scan along arbitrary orders: the four of SS2D, other sets of four, and one direction against the 1-D scan.

The provider of each row is its order. `pytest benchmarks -k directional --benchmark-only` measures only these rows.
"""

from collections.abc import Callable

import pytest
import torch
from mamba_workloads import Row, measured
from providers import BOTH, FORWARD, MEDMAMBA_56
from torch import Tensor

from mtlkit.ops import directional_scan, orders, selective_scan, ss2d
from mtlkit.testing import SS2D_SHAPES


def rows() -> dict[str, Callable[[], Row]]:
    """Rows by group and provider, such as "four: random"."""

    def four(function: Callable[..., Tensor]) -> Callable[[], Row]:
        return lambda: Row(function, flat())

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
        """The first of the four directions."""
        x, D = flat(), shape().D
        first = {"x_dbl": x["x_dbl"][:, :1], "A_logs": x["A_logs"][:D], "Ds": x["Ds"][:D]}
        return x | first | {name: x[name][:1] for name in ("dt_weight", "dt_bias")}

    def as_selective_scan(u, x_dbl, dt_weight, dt_bias, A_logs, Ds) -> Tensor:
        """The 1-D scan, whose time step needs a separate matrix product."""
        dts, B, C = x_dbl[:, 0].split((dt_weight.shape[2], *[A_logs.shape[1]] * 2), 1)
        return selective_scan(u, dt_weight[0] @ dts, -A_logs.exp(), B, C, Ds, None, dt_bias[0], True)

    fixed = random()
    length = shape().H * shape().W
    return {
        "four: ss2d": lambda: Row(ss2d, shape().inputs()),
        "four: cross": along(lambda: orders.cross(*image())),
        "four: snake": along(lambda: orders.snake(*image())),
        "four: windows": along(windows),
        "four: random": along(lambda: fixed),
        "one: selective_scan": lambda: Row(as_selective_scan, one()),
        "one: forward": lambda: Row(lambda **tensors: directional_scan(**tensors, order=orders.forward(length)), one()),
    }


@pytest.mark.parametrize("direction", [FORWARD, BOTH])
@pytest.mark.parametrize("name", rows())
def test_directional_scan(name, direction, measure) -> None:
    row = rows()[name]()
    count, provider = name.split(": ")
    op = "directional_scan" if count == "four" else "directional_scan-one"
    updates = SS2D_SHAPES[MEDMAMBA_56].updates // (1 if count == "four" else 4)
    measured(measure, op, MEDMAMBA_56, direction, provider, row, row, ("updates", updates))
