"""The nodes for token sequences, compared with the reference of their operator by the policy."""

import pytest
import torch
from torch import Tensor

import mtlkit
from harness.onnx_nodes import run_node
from mtlkit.ops import orders
from mtlkit.testing import assert_accurate


def exact(function, *tensors: Tensor | None, **options):
    """The reference in float64."""
    with mtlkit.use_backend("reference"), torch.no_grad():
        return function(*(t.double() if t is not None and t.is_floating_point() else t for t in tensors), **options)


def scan_inputs(B: int, K: int, D: int, L: int, N: int, R: int, own: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    u = randn(B, K, D, L) if own else randn(B, D, L)
    return [u, randn(B, K, R + 2 * N, L), randn(K, D, R), randn(K, D) - 3, randn(K * D, N), randn(K * D)]


def as_nodes(u: Tensor, x_dbl: Tensor, *others: Tensor) -> list[Tensor]:
    """The inputs with the channels of a token contiguous."""
    return [u.mT.contiguous(), x_dbl.permute(0, 3, 1, 2).contiguous(), *others]


# batches of 0 and 5, one token, states from 1 to 64, orders that skip tokens, channels that do not fill a vector
SCANS = [
    (orders.cross(5, 7), (2, 8, 4, 2)),
    (orders.both(1), (1, 19, 1, 1)),
    (orders.windows(6, 4, 2), (5, 33, 16, 3)),
    (orders.forward(9), (0, 8, 4, 2)),
    (orders.snake(3, 11), (1, 5, 64, 5)),
    (orders.atrous(4, 6), (2, 6, 3, 1)),
    (orders.diagonal(5, 3), (1, 17, 2, 2)),
]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(("order", "sizes"), SCANS, ids=lambda value: getattr(value, "name", None))
def test_directional_scan(order, sizes, merge, own):
    B, D, N, R = sizes
    inputs = scan_inputs(B, order.directions, D, order.tokens, N, R, own)
    y, last = run_node("DirectionalScan" if merge else "DirectionalScans", [*as_nodes(*inputs), order.table()], 2)
    expected = exact(mtlkit.ops.directional_scan, *inputs, order=order, merge=merge, return_last_state=True)
    assert_accurate("y", y.mT, expected[0])
    assert_accurate("last_state", last, expected[1])


def test_directional_scan_with_orders_and_sequences_of_each_sample():
    B, K, D, L, N, R = 3, 2, 6, 10, 4, 2
    inputs = scan_inputs(B, K, D, L, N, R, False)
    generator = torch.Generator().manual_seed(1)
    table = torch.stack([torch.randperm(L, generator=generator) for _ in range(B * K)]).view(B, K, L).int()
    seq_idx = torch.tensor([0] * 4 + [1] * 6, dtype=torch.int32).expand(B, L).contiguous()
    initial = torch.randn(B, K, D, N, generator=generator)
    y, last = run_node("DirectionalScan", [*as_nodes(*inputs), table, seq_idx, initial], 2)
    options = {"seq_idx": seq_idx, "initial_state": initial.double(), "return_last_state": True}
    expected = exact(mtlkit.ops.directional_scan, *inputs, order=table, **options)
    assert_accurate("y", y.mT, expected[0])
    assert_accurate("last_state", last, expected[1])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_directional_scan_on_threads(threads):
    order = orders.windows(8, 10, 2)
    inputs = scan_inputs(1, 1, 40, 80, 16, 3, False)
    given = [*as_nodes(*inputs), order.table()]
    first, second = (run_node("DirectionalScan", given, 2, threads)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert_accurate("y", first.mT, exact(mtlkit.ops.directional_scan, *inputs, order=order))


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, torch.zeros(2, 35), r"u: expected shape \(B, L, D\) or \(B, K, L, D\), got \(2, 35\)"),
        (0, torch.zeros(2, 34, 8), r"x_dbl: expected shape \(B, L, K, R \+ 2 N\) = \(2, 34, 4, 10\)"),
        (1, torch.zeros(2, 35, 4, 9), r"x_dbl: expected shape .* got \(2, 35, 4, 9\)"),
        (4, torch.zeros(32, 300), r"A_logs: expected shape .* = \(32, 256\), got \(32, 300\)"),
        (6, torch.zeros(3, 35, dtype=torch.int32), r"order: expected shape \(K, T\) = \(4, 35\), got \(3, 35\)"),
        (6, torch.full((4, 35), 35, dtype=torch.int32), r"order: expected tokens from 0 to 34, got 35"),
        (6, torch.full((4, 35), -1, dtype=torch.int32), r"order: expected tokens from 0 to 34, got -1"),
        (6, torch.zeros(4, 35, dtype=torch.int32), r"order: expected each token at most once .* got token 0 twice"),
        (7, torch.zeros(2, 34, dtype=torch.int32), r"seq_idx: expected shape \(B, L\) = \(2, 35\), got \(2, 34\)"),
        (8, torch.zeros(2, 4, 8, 3), r"initial_state: expected shape \(B, K, D, N\) = \(2, 4, 8, 4\)"),
    ],
)
def test_wrong_inputs_of_directional_scan(place, value, words):
    order = orders.cross(5, 7)
    given = [*as_nodes(*scan_inputs(2, 4, 8, 35, 4, 2, False)), order.table(), None, None]
    given[place] = value
    with pytest.raises(Exception, match=words):
        run_node("DirectionalScan", given, 2)


# --- causal_conv1d ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(
    ("B", "D", "L", "w", "offset"), [(2, 8, 37, 4, 0), (1, 19, 1, 3, 4), (5, 3, 2, 4, 7), (0, 4, 3, 2, 0)]
)
def test_causal_conv1d(B, D, L, w, offset, silu):
    generator = torch.Generator().manual_seed(0)
    wide, weight = torch.randn(B, L, offset + D + 2, generator=generator), torch.randn(D, w, generator=generator)
    initial = torch.randn(B, D, w - 1, generator=generator)
    x, activation = wide[..., offset : offset + D].mT, "silu" if silu else None
    for bias, states in ((None, None), (torch.randn(D, generator=generator), initial)):
        y, last = run_node("CausalConv1d", [wide, weight, bias, None, states], 2, silu=int(silu), offset=offset)
        options = {"initial_states": None if states is None else states.double(), "return_final_states": True}
        expected = exact(mtlkit.ops.causal_conv1d, x, weight, bias, activation=activation, **options)
        assert_accurate("y", y.mT, expected[0])
        assert torch.equal(last, expected[1].float())


def test_causal_conv1d_of_sequences():
    x, weight = torch.randn(2, 11, 5), torch.randn(5, 4)
    seq_idx = torch.tensor([0] * 4 + [1] * 5 + [-1] * 2, dtype=torch.int32).expand(2, 11).contiguous()
    y, _ = run_node("CausalConv1d", [x, weight, None, seq_idx], 2)
    assert_accurate("y", y.mT, exact(mtlkit.ops.causal_conv1d, x.mT, weight, seq_idx=seq_idx))


@pytest.mark.parametrize(
    ("shapes", "attributes", "words"),
    [
        ([(2, 9), (4, 3)], {}, r"x: expected shape \(B, L, C\), got \(2, 9\)"),
        ([(2, 9, 4), (4, 5)], {}, r"weight: expected shape \(D, w\), w from 2 to 4, = \(4, 4\), got \(4, 5\)"),
        ([(2, 9, 4), (4, 3)], {"offset": 1}, r"x: expected shape .* = \(2, 9, 5\), got \(2, 9, 4\)"),
        ([(2, 9, 4), (4, 3)], {"offset": -1}, "offset: expected a number that is at least 0"),
        ([(2, 9, 4), (4, 3), (3,)], {}, r"bias: expected shape \(D,\) = \(4,\), got \(3,\)"),
    ],
)
def test_wrong_inputs_of_causal_conv1d(shapes, attributes, words):
    with pytest.raises(Exception, match=words):
        run_node("CausalConv1d", [torch.randn(shape) for shape in shapes], 2, **attributes)
