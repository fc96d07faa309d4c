"""Orders: the token that each direction visits at each step."""

import pytest
import torch

from mtlkit.ops import orders

permuted = orders.permutation

SIZES = ((1, 1), (1, 5), (4, 1), (3, 4), (4, 6), (5, 3))


def grid(height: int, width: int) -> torch.Tensor:
    return torch.arange(height * width).view(height, width)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_direction_visits_every_token_once(height, width):
    for order in (
        orders.forward(height * width),
        orders.both(height * width),
        orders.rows(height, width),
        orders.columns(height, width),
        orders.cross(height, width),
        orders.diagonal(height, width),
        orders.snake(height, width),
        orders.windows(height, width, 2),
        orders.windows(height, width, 7, columns=True),
        orders.slices(height * width, height),
        orders.reverse(orders.cross(height, width)),
        orders.join(orders.snake(height, width), orders.rows(height, width)),
    ):
        table = order.table()
        assert table.dtype == torch.int32
        assert table.shape == (order.directions, order.steps), order
        assert order.tokens == height * width
        assert torch.equal(table.sort(-1).values.long(), torch.arange(height * width).expand_as(table)), order


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_directions_by_slices_of_the_image(height, width):
    image = grid(height, width)
    rows, columns = image.flatten().tolist(), image.T.flatten().tolist()
    assert orders.cross(height, width).table().tolist() == [rows, columns, rows[::-1], columns[::-1]]
    to_and_fro = torch.stack([row if h % 2 == 0 else row.flip(0) for h, row in enumerate(image)])
    assert orders.snake(height, width).table()[0].tolist() == to_and_fro.flatten().tolist()
    diagonals = [image[h, s - h].item() for s in range(height + width) for h in range(height) if 0 <= s - h < width]
    assert orders.diagonal(height, width).table()[0].tolist() == diagonals


def test_windows_by_blocks_of_the_image():
    image = grid(4, 6)
    blocks = image.view(2, 2, 3, 2).transpose(1, 2)  # (windows down, windows across, 2, 2)
    assert orders.windows(4, 6, 2).table()[0].tolist() == blocks.flatten().tolist()
    by_columns = image.T.reshape(3, 2, 2, 2).transpose(1, 2).flatten().tolist()
    assert orders.windows(4, 6, 2, columns=True).table()[0].tolist() == by_columns


@pytest.mark.parametrize(("height", "width", "step"), [(4, 6, 2), (6, 3, 3), (2, 2, 1)])
def test_atrous_directions_share_the_pixels(height, width, step):
    image, order = grid(height, width), orders.atrous(height, width, step)
    assert order.table().flatten().sort().values.tolist() == image.flatten().tolist()
    for k, visited in enumerate(order.table().tolist()):
        part = image[k % step :: step, k // step :: step]
        assert visited == (part.T if k % 2 else part).flatten().tolist()


def test_slices_run_along_the_depth():
    volume = torch.arange(24).view(4, 2, 3)
    assert orders.slices(24, 4).table()[0].tolist() == volume.permute(1, 2, 0).flatten().tolist()


def test_reverse_and_join_keep_the_arithmetic():
    order = orders.join(orders.columns(3, 4), orders.reverse(orders.rows(3, 4)))
    assert order.walks is not None
    assert orders.reverse(order).table().tolist() == order.table().flip(-1).tolist()
    mixed = orders.join(order, orders.snake(3, 4))
    assert mixed.walks is None
    assert orders.reverse(mixed).table().tolist() == mixed.table().flip(-1).tolist()


def test_samples_with_orders_of_their_own_join_others():
    own = permuted(torch.stack([torch.randperm(6) for _ in range(4)]).view(2, 2, 6))
    joined = orders.join(own, orders.rows(2, 3))
    assert joined.directions == 3
    assert joined.table().shape == (2, 3, 6)


def test_orders_and_tables_are_made_once():
    assert orders.snake(5, 4) is orders.snake(5, 4)
    assert orders.cross(5, 4).table() is orders.cross(5, 4).table()
    with torch.inference_mode():
        assert not orders.diagonal(9, 4).table().is_inference()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: orders.rows(0, 3), ValueError, "height: expected at least 1, got 0"),
        (lambda: orders.slices(7, 2), ValueError, "count: expected a divisor of length = 7, got 2"),
        (lambda: orders.atrous(4, 5), ValueError, "width: expected a multiple of step = 2, got 5"),
        (lambda: orders.windows(4, 5, 0), ValueError, "window: expected at least 1, got 0"),
        (lambda: permuted([[0, 1, 1]]), ValueError, "table: .* got token 1 twice"),
        (lambda: permuted([[0, 3]]), ValueError, "table: expected tokens from 0 to 1, got 3"),
        (lambda: permuted([[0, 3]], 3), ValueError, "table: expected tokens from 0 to 2, got 3"),
        (lambda: permuted([[0, 1, 2]], 2), ValueError, "table: expected between 1 and L = 2 steps, got 3"),
        (lambda: permuted([0, 1]), ValueError, "table: expected shape"),
        (lambda: permuted([[0.0, 1.0]]), TypeError, "table: expected integers"),
        (lambda: orders.reverse(torch.tensor([[0]])), TypeError, "order: expected a ScanOrder"),
        (lambda: orders.join(), ValueError, "orders: expected at least one"),
        (lambda: orders.join(orders.rows(2, 3), orders.rows(3, 3)), ValueError, "orders: expected 6 steps over 6"),
    ],
)
def test_bad_orders(make, error, message):
    with pytest.raises(error, match=message):
        make()
