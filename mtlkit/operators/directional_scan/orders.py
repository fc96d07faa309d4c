"""Orders: which token each direction of a scan visits at each step.

Tokens of an image are numbered row by row, h W + w, those of a volume plane by plane. Every function returns a
`ScanOrder`; `join` combines the directions of several orders and `reverse` reverses them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

__all__ = [
    "ScanOrder",
    "Walk",
    "atrous",
    "both",
    "columns",
    "cross",
    "diagonal",
    "forward",
    "join",
    "permutation",
    "reverse",
    "rows",
    "slices",
    "snake",
    "windows",
]

_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


class Walk(NamedTuple):
    """A direction given by a formula: step t visits token `start + t // run * outer + t % run * inner`.

    Example:
        >>> import mtlkit
        >>> mtlkit.ops.orders.columns(2, 3).walks
        (Walk(start=0, run=2, inner=3, outer=1),)
    """

    start: int
    run: int
    inner: int
    outer: int


@dataclass(frozen=True, eq=False)
class ScanOrder:
    """The tokens that each of several directions visits, in their order.

    Attributes:
        name: name of the order in messages.
        directions: number of directions, K.
        tokens: number of tokens, L.
        steps: number of tokens that each direction visits, T.
        walks: the directions as formulas; None if one of them needs a table.

    Example:
        >>> import mtlkit
        >>> order = mtlkit.ops.orders.cross(2, 3)
        >>> order.directions, order.tokens, order.steps
        (4, 6, 6)
    """

    name: str
    directions: int
    tokens: int
    steps: int
    walks: tuple[Walk, ...] | None = None
    _table: Tensor | None = field(default=None, repr=False)
    _copies: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    def table(self, device: torch.device | str = "cpu") -> Tensor:
        """The token that each direction visits at each step, (K, T) or (B, K, T) in int32.

        Example:
            >>> import mtlkit
            >>> mtlkit.ops.orders.columns(2, 3).table()
            tensor([[0, 3, 1, 4, 2, 5]], dtype=torch.int32)
        """
        if not _can_keep():
            return self._made(torch.device(device))
        device = torch.device(device)
        found = self._copies.get(device)
        if found is None:
            with torch.inference_mode(False):
                found = self._copies[device] = self._made(device)
        return found

    def _made(self, device: torch.device) -> Tensor:
        if self._table is not None:
            return self._table.to(device)
        return table_of_numbers(self.numbers, self.steps, device)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the walks, four per direction; empty if there is a table."""
        return tuple(number for walk in self.walks or () for number in walk)


def table_of_numbers(numbers: Sequence[int], steps: int, device: torch.device) -> Tensor:
    """The table of walks, (K, T) in int32, from the four numbers of each direction."""
    t = torch.arange(steps, device=device)
    walks = (numbers[i : i + 4] for i in range(0, len(numbers), 4))
    return torch.stack([start + t // run * outer + t % run * inner for start, run, inner, outer in walks]).int()


def _can_keep() -> bool:
    """Whether tensors made now can be cached for later calls: no tracing and no mode is active."""
    return not torch.compiler.is_compiling() and _get_current_dispatch_mode() is None


@lru_cache(maxsize=128)
def _kept(build: Callable[..., ScanOrder], *arguments: int) -> ScanOrder:
    with torch.inference_mode(False):
        return build(*arguments)


def _cached(build: Callable[..., ScanOrder], *arguments: int) -> ScanOrder:
    """`build(*arguments)`, cached by its arguments."""
    return _kept(build, *map(int, arguments)) if _can_keep() else build(*arguments)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if not size >= 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")


# --- arithmetic -------------------------------------------------------------------------------------------------------


def forward(length: int) -> ScanOrder:
    """The tokens in their order, K = 1.

    Example:
        >>> import mtlkit
        >>> mtlkit.ops.orders.forward(4).table().tolist()
        [[0, 1, 2, 3]]
    """
    _check_sizes(length=length)
    return _cached(_forward, length)


def _forward(length: int) -> ScanOrder:
    return ScanOrder("forward", 1, length, length, (Walk(0, length, 1, length),))


def both(length: int) -> ScanOrder:
    """The tokens forwards and backwards, K = 2, as in Vim.

    Example:
        >>> import mtlkit
        >>> mtlkit.ops.orders.both(3).table().tolist()
        [[0, 1, 2], [2, 1, 0]]
    """
    _check_sizes(length=length)
    return _cached(_both, length)


def _both(length: int) -> ScanOrder:
    return _named("both", join(forward(length), reverse(forward(length))))


def rows(height: int, width: int) -> ScanOrder:
    """The pixels of an image row by row, K = 1.

    Example:
        >>> import mtlkit
        >>> mtlkit.ops.orders.rows(2, 3).table().tolist()
        [[0, 1, 2, 3, 4, 5]]
    """
    _check_sizes(height=height, width=width)
    return _named("rows", forward(height * width))


def columns(height: int, width: int) -> ScanOrder:
    """The pixels of an image column by column, K = 1.

    Example:
        >>> import mtlkit
        >>> mtlkit.ops.orders.columns(2, 3).table().tolist()
        [[0, 3, 1, 4, 2, 5]]
    """
    _check_sizes(height=height, width=width)
    return _cached(_columns, height, width)


def _columns(height: int, width: int) -> ScanOrder:
    length = height * width
    return ScanOrder("columns", 1, length, length, (Walk(0, height, width, 1),))


def cross(height: int, width: int) -> ScanOrder:
    """Rows, columns, rows backwards, columns backwards, K = 4: the order of VMamba and of `mtlkit.ops.ss2d`.

    Example:
        >>> import mtlkit
        >>> mtlkit.ops.orders.cross(2, 2).table().tolist()
        [[0, 1, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0], [3, 1, 2, 0]]
    """
    _check_sizes(height=height, width=width)
    return _cached(_cross, height, width)


def _cross(height: int, width: int) -> ScanOrder:
    two = join(rows(height, width), columns(height, width))
    return _named("cross", join(two, reverse(two)))


def slices(length: int, count: int) -> ScanOrder:
    """The first token of each of `count` equal slices, then the second of each, and so on, K = 1.

    This is the third direction of SegMamba: for the slices of a volume, the scan runs along its depth.

    Args:
        length: number of tokens.
        count: number of slices; it must divide the length.

    Example:
        >>> import mtlkit
        >>> mtlkit.ops.orders.slices(6, 2).table().tolist()
        [[0, 3, 1, 4, 2, 5]]
    """
    _check_sizes(length=length, count=count)
    if length % count:
        raise ValueError(f"count: expected a divisor of length = {length}, got {count}")
    return _named("slices", columns(count, length // count))


def atrous(height: int, width: int, step: int = 2) -> ScanOrder:
    """Every `step`-th pixel of every `step`-th row, K = step²; each direction covers another subset of the pixels.

    Direction k starts at row k % step and column k // step. Directions with odd k run along columns, the others along
    rows, as EfficientVMamba's four directions do for a step of 2.

    Args:
        height: height of the image, a multiple of `step`.
        width: width of the image, a multiple of `step`. EfficientVMamba pads other images with zeros.
        step: distance between neighbours.

    Example:
        >>> import mtlkit
        >>> mtlkit.ops.orders.atrous(2, 4).table().tolist()
        [[0, 2], [4, 6], [1, 3], [5, 7]]
    """
    _check_sizes(height=height, width=width, step=step)
    for name, size in (("height", height), ("width", width)):
        if size % step:
            raise ValueError(f"{name}: expected a multiple of step = {step}, got {size}")
    return _cached(_atrous, height, width, step)


def _atrous(height: int, width: int, step: int) -> ScanOrder:
    walks = []
    for k in range(step * step):
        row, column = k % step, k // step
        by_columns = k % 2 == 1
        inner, outer = (step * width, step) if by_columns else (step, step * width)
        walks.append(Walk(row * width + column, height // step if by_columns else width // step, inner, outer))
    return ScanOrder("atrous", step * step, height * width, height * width // step**2, tuple(walks))


# --- tables -----------------------------------------------------------------------------------------------------------


def diagonal(height: int, width: int) -> ScanOrder:
    """The pixels along anti-diagonals: by h + w, then from top to bottom, K = 1.

    Example:
        >>> import mtlkit
        >>> mtlkit.ops.orders.diagonal(2, 3).table().tolist()
        [[0, 1, 3, 2, 4, 5]]
    """
    _check_sizes(height=height, width=width)
    return _cached(_diagonal, height, width)


def _diagonal(height: int, width: int) -> ScanOrder:
    h, w = torch.arange(height, device="cpu")[:, None], torch.arange(width, device="cpu")
    return _of_table("diagonal", ((h + w) * height + h).flatten().argsort()[None], height * width)


def snake(height: int, width: int) -> ScanOrder:
    """Rows in alternating direction, their reverse, columns likewise, their reverse, K = 4, as in PlainMamba.

    Example:
        >>> import mtlkit
        >>> mtlkit.ops.orders.snake(2, 3).table().tolist()
        [[0, 1, 2, 5, 4, 3], [3, 4, 5, 2, 1, 0], [0, 3, 4, 1, 2, 5], [5, 2, 1, 4, 3, 0]]
    """
    _check_sizes(height=height, width=width)
    return _cached(_snake, height, width)


def _snake(height: int, width: int) -> ScanOrder:
    h, w = torch.arange(height, device="cpu")[:, None], torch.arange(width, device="cpu")
    by_rows = h * width + torch.where(h % 2 == 1, width - 1 - w, w)  # (H, W)
    by_columns = torch.where(w % 2 == 1, height - 1 - h, h) * width + w
    one, two = by_rows.flatten(), by_columns.T.flatten()
    return _of_table("snake", torch.stack((one, one.flip(0), two, two.flip(0))), height * width)


def windows(height: int, width: int, window: int, *, columns: bool = False) -> ScanOrder:
    """One window of `window` by `window` pixels after another, each row by row, K = 1, as in LocalMamba.

    Windows at the right and lower edges are smaller if the size is not a multiple of `window`. LocalMamba pads the
    image with zeros there, and padding decays the state as tokens do: pad the image first to get its results.

    Args:
        height: height of the image.
        width: width of the image.
        window: side of a window.
        columns: whether the windows, and the pixels inside each window, are visited column by column.

    Example:
        >>> import mtlkit
        >>> mtlkit.ops.orders.windows(2, 4, 2).table().tolist()
        [[0, 1, 4, 5, 2, 3, 6, 7]]
    """
    _check_sizes(height=height, width=width, window=window)
    return _cached(_windows, height, width, window, columns)


def _windows(height: int, width: int, window: int, by_columns: bool) -> ScanOrder:
    h, w = torch.arange(height, device="cpu")[:, None], torch.arange(width, device="cpu")
    if by_columns:
        key = ((w // window * height + h // window) * window + w % window) * window + h % window
    else:
        key = ((h // window * width + w // window) * window + h % window) * window + w % window
    return _of_table("windows", key.flatten().argsort()[None], height * width)


def permutation(table: Tensor | Sequence[Any], tokens: int | None = None, *, check: bool = True) -> ScanOrder:
    """An order given as a table.

    Args:
        table: the token that each direction visits at each step, integers (K, T), or (B, K, T) if every sample has its
            own order.
        tokens: number of tokens; T if None, so that every direction visits all tokens.
        check: whether to check the table, which synchronises if it is on a GPU. Skip the check only for a table that
            you know to be valid.

    Raises:
        TypeError: the table does not hold integers.
        ValueError: a token is out of range, or a direction visits it twice.

    Example:
        >>> import mtlkit
        >>> mtlkit.ops.orders.permutation([[2, 0, 1]]).name
        'permutation'
    """
    found: Tensor = table if isinstance(table, Tensor) else torch.tensor(table, device="cpu")
    check_table("table", found)
    tokens = found.shape[-1] if tokens is None else tokens
    check_steps("table", found.shape[-1], tokens)
    if check:
        check_visits("table", found, tokens)
    return _of_table("permutation", found.clone(), tokens)


# --- of other orders --------------------------------------------------------------------------------------------------


def reverse(order: ScanOrder) -> ScanOrder:
    """The order with every direction reversed.

    Example:
        >>> import mtlkit
        >>> orders = mtlkit.ops.orders
        >>> orders.reverse(orders.rows(2, 2)).table().tolist()
        [[3, 2, 1, 0]]
    """
    _check_order("order", order)
    name = f"reverse {order.name}"
    if order.walks is None:
        return _of_table(name, order.table().flip(-1), order.tokens)
    last = order.steps - 1
    walks = tuple(
        Walk(start + last // run * outer + last % run * inner, run, -inner, -outer)
        for start, run, inner, outer in order.walks
    )
    return ScanOrder(name, order.directions, order.tokens, order.steps, walks)


def join(*orders: ScanOrder) -> ScanOrder:
    """One order with the directions of all given orders.

    Raises:
        ValueError: the orders have different tokens or steps.

    Example:
        >>> import mtlkit
        >>> orders = mtlkit.ops.orders
        >>> orders.join(orders.rows(2, 2), orders.columns(2, 2)).directions
        2
    """
    if not orders:
        raise ValueError("orders: expected at least one, got none")
    for order in orders:
        _check_order("orders", order)
        if (order.tokens, order.steps) != (orders[0].tokens, orders[0].steps):
            raise ValueError(
                f"orders: expected {orders[0].steps} steps over {orders[0].tokens} tokens as in the first, got "
                f"{order.steps} over {order.tokens} of {order.name}"
            )
    name = ", ".join(order.name for order in orders)
    walks = [order.walks for order in orders if order.walks is not None]
    if len(walks) == len(orders):
        every = tuple(walk for some in walks for walk in some)
        return ScanOrder(name, len(every), orders[0].tokens, orders[0].steps, every)
    tables = [order.table() for order in orders]
    samples = next((table.shape[0] for table in tables if table.dim() == 3), None)
    if samples is not None:
        tables = [table.expand(samples, -1, -1) for table in tables]
    return _of_table(name, torch.cat(tables, -2), orders[0].tokens)


def _named(name: str, order: ScanOrder) -> ScanOrder:
    return ScanOrder(name, order.directions, order.tokens, order.steps, order.walks)


def _of_table(name: str, table: Tensor, tokens: int) -> ScanOrder:
    return ScanOrder(name, table.shape[-2], tokens, table.shape[-1], None, table.int())


# --- checks -----------------------------------------------------------------------------------------------------------


def _check_order(name: str, order: object) -> None:
    if not isinstance(order, ScanOrder):
        raise TypeError(f"{name}: expected a ScanOrder of mtlkit.ops.orders, got {type(order).__name__}")


def check_table(name: str, table: Tensor) -> None:
    """Raises unless the table holds integers, (K, T) or (B, K, T)."""
    if table.dtype not in _INTEGERS:
        raise TypeError(f"{name}: expected integers, got {table.dtype}")
    if table.dim() not in (2, 3):
        raise ValueError(f"{name}: expected shape (K, T) or (B, K, T), got {tuple(table.shape)}")


def check_steps(name: str, steps: int, tokens: int) -> None:
    """Raises unless the number of steps is between 1 and the number of tokens."""
    if not 1 <= steps <= tokens:
        raise ValueError(f"{name}: expected between 1 and L = {tokens} steps, got {steps}")


def check_visits(name: str, table: Tensor, tokens: int) -> None:
    """Raises unless every direction visits only existing tokens, and each at most once."""
    if table.numel() == 0:
        return
    table = table.long()
    low, high = (int(bound) for bound in table.aminmax())
    if low < 0 or high >= tokens:
        raise ValueError(f"{name}: expected tokens from 0 to {tokens - 1}, got {low if low < 0 else high}")
    seen = torch.zeros(*table.shape[:-1], tokens, dtype=torch.bool, device=table.device).scatter_(-1, table, True)
    if int(seen.sum()) != table.numel():
        in_order = table.sort(-1).values
        twice = in_order[..., 1:][in_order[..., 1:] == in_order[..., :-1]]
        raise ValueError(
            f"{name}: expected directions that visit each token at most once, got token {int(twice[0])} twice in one"
        )
