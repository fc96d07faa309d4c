"""Directions of published scans, and the scan of an image along several of them.

A direction is defined for maps of any size. If the original pads its map with zeros to multiples of a number, so does
the scan here, because padding tokens also decay the state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtlkit import ops
from mtlkit._accelerate._share import require

KEPT = 128  # joined orders in the cache


@dataclass(frozen=True)
class Scan:
    """One or several directions of a scan.

    Attributes:
        name: their name in the report.
        order: returns the scan order for the rows and columns of a map.
        directions: number of directions.
        multiple: rows and columns are padded to multiples of it.
    """

    name: str
    order: Callable[[int, int], ops.orders.ScanOrder]
    directions: int = 1
    multiple: int = 1


def reversed_scan(scan: Scan) -> Scan:
    """Returns the same directions backwards."""
    return Scan(f"{scan.name} backwards", partial(_reversed, scan.order), scan.directions, scan.multiple)


def _reversed(order: Callable[[int, int], ops.orders.ScanOrder], height: int, width: int) -> ops.orders.ScanOrder:
    return ops.orders.reverse(order(height, width))


def window_scan(window: int) -> Scan:
    """Returns the direction that scans one window after the other."""
    return Scan(f"windows of {window}", partial(_windows, window), multiple=window)


def _windows(window: int, height: int, width: int) -> ops.orders.ScanOrder:
    return ops.orders.windows(height, width, window)


ROWS, COLUMNS = Scan("rows", ops.orders.rows), Scan("columns", ops.orders.columns)
ROWS_BACK, COLUMNS_BACK = reversed_scan(ROWS), reversed_scan(COLUMNS)
CROSS = (Scan("cross", ops.orders.cross, 4),)
ATROUS = (Scan("atrous", ops.orders.atrous, 4, 2),)
SNAKE = (Scan("snake", ops.orders.snake, 4),)

# by number of directions: the scans that a layer may use which does not name them, most common first
USUAL: dict[int, tuple[tuple[Scan, ...], ...]] = {
    1: ((ROWS,), (COLUMNS,), (ROWS_BACK,)),
    2: ((ROWS, ROWS_BACK), (ROWS, COLUMNS), (COLUMNS, COLUMNS_BACK)),
    4: (
        CROSS,
        (ROWS,) * 4,
        (ROWS, ROWS, ROWS_BACK, ROWS_BACK),
        ATROUS,
        SNAKE,
        (ROWS, ROWS_BACK, COLUMNS, COLUMNS_BACK),
    ),
}


def usual_scans(directions: int) -> tuple[tuple[Scan, ...], ...]:
    """Returns the scans that a layer with this number of directions may use."""
    return USUAL.get(directions, ())


def named_scans(names: Any) -> tuple[Scan, ...]:
    """Returns the directions by LocalMamba's names, such as h, v, w2 and w2_flip.

    Raises:
        NotRecognised: a name is unknown.
    """
    scans: list[Scan] = []
    for name in names:
        stem, _, flip = str(name).partition("_")
        window = stem[1:] if stem.startswith("w") else ""
        known = {"h": ROWS, "v": COLUMNS}.get(stem) or (window_scan(int(window)) if window.isdecimal() else None)
        require(known is not None and flip in ("", "flip"), f"it scans in a direction called {name}")
        assert known is not None
        scans.append(reversed_scan(known) if flip else known)
    return tuple(scans)


def says(scans: tuple[Scan, ...]) -> str:
    """Returns a description of the directions for the report."""
    return " + ".join(dict.fromkeys(scan.name for scan in scans))


# --- scanning ---------------------------------------------------------------------------------------------------------


def scan_map(
    scans: tuple[Scan, ...],
    u: Tensor,
    rows: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_logs: Tensor,
    Ds: Tensor,
    *,
    merge: bool = True,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Scans a map along the directions.

    Args:
        scans: the directions, K in total.
        u: input, (B, H, W, D).
        rows: projections of the input, (B, H, W, K, R + 2 N).
        dt_weight: as in `mtlkit.ops.directional_scan`.
        dt_bias: the same.
        A_logs: the same.
        Ds: the same.
        merge: whether to add up the directions.
        out_dtype: dtype of the result.

    Returns:
        The sum of the directions, (B, H, W, D); or, without `merge`, each of them, (B, K, H, W, D), grouped by padding.
    """
    height, width, inner = u.shape[1:]
    groups: dict[tuple[int, int], tuple[list[Scan], list[int]]] = {}  # by padding: scans, direction indices
    first = 0
    for scan in scans:
        members, taken = groups.setdefault(_padded(scan, height, width), ([], []))
        members.append(scan)
        taken += range(first, first + scan.directions)
        first += scan.directions
    results: list[Tensor] = []
    for (tall, wide), (members, taken) in groups.items():
        x, x_rows, weights = u, rows, (dt_weight, dt_bias, A_logs, Ds)
        if len(groups) > 1:
            x_rows = rows[:, :, :, taken]
            each_A, each_D = A_logs.unflatten(0, (-1, inner))[taken], Ds.unflatten(0, (-1, inner))[taken]
            weights = dt_weight[taken], dt_bias[taken], each_A.flatten(0, 1), each_D.flatten()
        if (tall, wide) != (height, width):
            x = F.pad(x, (0, 0, 0, wide - width, 0, tall - height))
            x_rows = F.pad(x_rows, (0, 0, 0, 0, 0, wide - width, 0, tall - height))
        y = ops.directional_scan(
            x.flatten(1, 2).transpose(1, 2),
            x_rows.permute(0, 3, 4, 1, 2).flatten(3),
            *weights,
            order=_joined(tuple(members), tall, wide),
            merge=merge,
            out_dtype=out_dtype,
        )  # (B, D, L) or (B, K, D, L)
        y = y.transpose(-2, -1).unflatten(-2, (tall, wide))
        results.append(y[..., :height, :width, :])
    if merge:
        return sum(results[1:], results[0])
    return torch.cat(results, 1) if len(results) > 1 else results[0]


def _padded(scan: Scan, height: int, width: int) -> tuple[int, int]:
    return -(-height // scan.multiple) * scan.multiple, -(-width // scan.multiple) * scan.multiple


_orders: dict[tuple[tuple[Scan, ...], int, int], ops.orders.ScanOrder] = {}


def _joined(scans: tuple[Scan, ...], height: int, width: int) -> ops.orders.ScanOrder:
    """Returns the order of all directions; it is cached, except while a call is being traced."""
    key = (scans, height, width)
    order = None if torch.compiler.is_compiling() else _orders.get(key)
    if order is None:
        with torch.inference_mode(False):
            order = ops.orders.join(*(scan.order(height, width) for scan in scans))
        if not torch.compiler.is_compiling() and type(order.table()) is Tensor:
            if len(_orders) >= KEPT:
                _orders.clear()
            _orders[key] = order
    return order
