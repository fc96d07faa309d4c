"""Tests specific to causal_conv1d; test_matrix.py has those that all operators share."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mtlkit
from mtlkit import _native
from mtlkit.ops import causal_conv1d, causal_conv1d_update

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")

BACKENDS = ["cpu", "torch", "reference"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest):
    with mtlkit.use_backend(request.param):
        yield request.param


def normal(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, requires_grad=True)


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's convolution, for one sequence without earlier tokens."""
    width = weight.shape[1]
    return F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=len(weight))[..., : x.shape[2]]


def gradients(outputs, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a loss with the same random weights in every call."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in outputs]
    return torch.autograd.grad(outputs, inputs, weights)


def assert_close(got, wanted) -> None:
    torch.testing.assert_close(tuple(got), tuple(wanted), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("inside", ["tokens", "channels"])
@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_published_semantics(backend, width, activation, inside):
    x, weight, bias = normal(2, 19, 37), normal(19, width), normal(19)
    placed = x if inside == "tokens" else x.transpose(1, 2).contiguous().transpose(1, 2)
    for b in (bias, None):
        wanted = convolved(x, weight, b)
        wanted = wanted if activation is None else F.silu(wanted)
        got = causal_conv1d(placed, weight, b, activation=activation)
        leaves = (x, weight) if b is None else (x, weight, b)
        assert_close((got, *gradients([got], *leaves)), (wanted, *gradients([wanted], *leaves)))
        assert got.mT.is_contiguous() == (inside == "channels")


@pytest.mark.parametrize("lengths", [(1, 1, 1, 6), (2, 7), (3, 3, 3), (5, 4)], ids=str)
@pytest.mark.parametrize("width", [2, 3, 4])
def test_final_states_are_the_initial_states_of_what_follows(backend, width, lengths):
    """Pieces, some of them shorter than the filter, give the results of the complete sequence."""
    x, weight, bias, before = normal(2, 5, 9), normal(5, width), normal(5), normal(2, 5, width - 1)
    state, pieces = before, []
    for piece in x.split(lengths, -1):
        y, state = causal_conv1d(piece, weight, bias, initial_states=state, return_final_states=True, activation="silu")
        pieces.append(y)
    got = torch.cat(pieces, -1), state
    history = torch.cat([before, x], -1)
    wanted = F.silu(F.conv1d(history, weight[:, None], bias, groups=5)), history[..., 9:]
    leaves = x, weight, bias, before
    assert_close((*got, *gradients(got, *leaves)), (*wanted, *gradients(wanted, *leaves)))


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_final_states_without_initial_ones_begin_with_zeros(backend, length):
    x, weight = normal(2, 3, length), normal(3, 4)
    y, state = causal_conv1d(x, weight, return_final_states=True)
    wanted = F.pad(x, (3, 0))[..., -3:]
    assert_close((state, *gradients([y, state], x)), (wanted, *gradients([convolved(x, weight, None), wanted], x)))


def test_outputs_may_be_written_in_place(backend):
    x, weight = normal(2, 9, 18).transpose(1, 2), normal(18, 3)
    y, state = causal_conv1d(x, weight, return_final_states=True)
    y += state.sum(-1, keepdim=True)
    wanted = convolved(x, weight, None) + x[..., -2:].sum(-1, keepdim=True)
    assert_close((y, *gradients([y], x, weight)), (wanted, *gradients([wanted], x, weight)))


SEQUENCES = (
    ((9, 1, 12, 3, 15), (40,), (1, 1, 1, 2, 35)),
    ((40,), (20, 20), (39, 1)),
)


@pytest.mark.parametrize("inside", ["tokens", "channels"])
@pytest.mark.parametrize("lengths", SEQUENCES, ids=["short", "long"])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_taps_do_not_cross_a_boundary(backend, width, lengths, inside):
    """Non-finite values outside a sequence do not affect it. Indices of sequences may recur."""
    x, weight, bias = normal(3, 18, 40), normal(18, width), normal(18)
    seq_idx = torch.stack([torch.arange(len(row)).remainder(2).repeat_interleave(torch.tensor(row)) for row in lengths])
    placed = x if inside == "tokens" else x.transpose(1, 2).contiguous().transpose(1, 2)
    got = causal_conv1d(placed, weight, bias, seq_idx=seq_idx, activation="silu")
    wanted = torch.cat(
        [
            torch.cat([convolved(piece, weight, bias) for piece in row[None].split(list(pieces), -1)], -1)
            for row, pieces in zip(x, lengths, strict=True)
        ]
    )
    wanted = F.silu(wanted)
    assert_close((got, *gradients([got], x, weight, bias)), (wanted, *gradients([wanted], x, weight, bias)))

    first = lengths[0][0]
    spoilt = placed.detach().clone()
    spoilt[0, :, :first] = float("nan")
    again = causal_conv1d(spoilt, weight, bias, seq_idx=seq_idx, activation="silu")
    assert torch.equal(again[0, :, first:], got[0, :, first:])


@pytest.mark.parametrize("inside", ["tokens", "channels"])
def test_padding_is_zero_and_has_no_gradient(backend, inside):
    x, weight, bias = normal(2, 18, 30), normal(18, 4), normal(18)
    placed = x if inside == "tokens" else x.transpose(1, 2).contiguous().transpose(1, 2)
    seq_idx = torch.zeros(2, 30, dtype=torch.int64)
    seq_idx[0, 21:], seq_idx[1, :5] = -1, -7
    got = causal_conv1d(placed, weight, bias, seq_idx=seq_idx)
    parts = convolved(x[:1, :, :21], weight, bias), convolved(x[1:, :, 5:], weight, bias)
    wanted = torch.cat([F.pad(parts[0], (0, 9)), F.pad(parts[1], (5, 0))])
    assert_close((got, *gradients([got], x, weight, bias)), (wanted, *gradients([wanted], x, weight, bias)))


def test_sequences_compile_whole(backend):
    """Indices have no gradient, and another number of sequences does not cause a recompilation."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(causal_conv1d, backend=counter, fullgraph=True, dynamic=True)
    for batch, length in ((2, 9), (3, 12)):
        x, weight, bias = normal(batch, 5, length), normal(5, 4), normal(5)
        seq_idx = torch.arange(length).div(4, rounding_mode="floor").repeat(batch, 1)
        got, wanted = (f(x, weight, bias, seq_idx=seq_idx, activation="silu") for f in (compiled, causal_conv1d))
        assert_close((got, *gradients([got], x, weight, bias)), (wanted, *gradients([wanted], x, weight, bias)))
    assert counter.frame_count == 1


def test_opcheck_of_sequences():
    seq_idx = torch.tensor([[0, 0, 1, 1, -1]], dtype=torch.int32)
    inputs = (normal(1, 3, 5), normal(3, 2), None, seq_idx, None)
    torch.library.opcheck(torch.ops.mtlkit.causal_conv1d.default, ("cpu", *inputs, True, False))


BAD = {
    "x: expected a tensor, got list": ({"x": [1.0]}, TypeError),
    "x: expected 3 dimensions, got 2": ({"x": torch.ones(4, 9)}, ValueError),
    r"x: expected .* at least 1, got \(1, 4, 0\)": ({"x": torch.ones(1, 4, 0)}, ValueError),
    r"weight: expected shape \(D, w\) with w in \(2, 3, 4\), got \(4, 5\)": ({"weight": torch.ones(4, 5)}, ValueError),
    r"weight: expected shape \(D, w\) = \(4, 3\), got \(5, 3\)": ({"weight": torch.ones(5, 3)}, ValueError),
    "weight: expected 2 dimensions, got 3": ({"weight": torch.ones(4, 1, 4)}, ValueError),
    r"bias: expected shape \(D,\) = \(4,\), got \(3,\)": ({"bias": torch.ones(3)}, ValueError),
    "bias: expected device cpu, where x is, got meta": ({"bias": torch.ones(4, device="meta")}, ValueError),
    r"initial_states: expected shape \(B, D, w - 1\) = \(2, 4, 3\), got \(2, 4, 4\)": (
        {"initial_states": torch.ones(2, 4, 4)},
        ValueError,
    ),
    "seq_idx: expected int32 or int64, got torch.float32": ({"seq_idx": torch.ones(2, 9)}, TypeError),
    r"seq_idx: expected shape \(B, L\) = \(2, 9\), got \(2, 8\)": (
        {"seq_idx": torch.ones(2, 8, dtype=torch.int32)},
        ValueError,
    ),
    "seq_idx: expected None with initial_states or return_final_states": (
        {"seq_idx": torch.ones(2, 9, dtype=torch.int32), "return_final_states": True},
        ValueError,
    ),
    "activation: expected one of None, 'silu', 'swish', got 'relu'": ({"activation": "relu"}, ValueError),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    change, error = BAD[message]
    arguments = {"x": torch.ones(2, 4, 9), "weight": torch.ones(4, 4), "bias": torch.ones(4)} | change
    with pytest.raises(error, match=message):
        causal_conv1d(**arguments)


# --- the step ---------------------------------------------------------------------------------------------------------

LAYOUTS = {"tokens": lambda t: t, "channels": lambda t: t.transpose(1, 2).contiguous().transpose(1, 2)}


@pytest.mark.parametrize("inside", LAYOUTS)
@pytest.mark.parametrize("counts", [(1, 1, 1, 1, 1), (2, 3), (5,), (1, 4)], ids=str)
@pytest.mark.parametrize(("width", "kept"), [(2, 1), (3, 2), (4, 3), (4, 4), (2, 7)])
def test_updates_are_the_convolution_of_the_whole(backend, width, kept, counts, inside):
    """With the state as a window of the last tokens, and as a ring buffer."""
    x, weight, bias = torch.randn(3, 19, 5), torch.randn(19, width), torch.randn(19)
    before = torch.randn(3, 19, kept)
    wanted = causal_conv1d(x, weight, bias, initial_states=before[..., kept - width + 1 :], activation="silu")
    window, ring, seen = LAYOUTS[inside](before.clone()), before.clone(), torch.tensor([0, kept, 5 * kept])
    got = {"window": [], "ring": []}
    for piece in x.split(counts, -1):
        kinds = {"window": (window, None), "ring": (ring, seen)}
        for kind, (state, lengths) in kinds.items():
            if kind == "window" or piece.shape[2] <= kept:
                y = causal_conv1d_update(piece, state, weight, bias, activation="silu", cache_seqlens=lengths)
                got[kind].append(y)
        seen = seen + piece.shape[2]
    history = torch.cat([before, x], -1)
    torch.testing.assert_close(torch.cat(got["window"], -1), wanted)
    assert torch.equal(window, history[..., 5:])
    if max(counts) <= kept:
        torch.testing.assert_close(torch.cat(got["ring"], -1), wanted)
        assert torch.equal(ring, history[..., 5:].roll(5 % kept, -1))


def test_more_new_tokens_than_a_ring_holds(backend):
    x, weight, ring = torch.randn(1, 3, 11), torch.randn(3, 3), torch.zeros(1, 3, 4)
    y = causal_conv1d_update(x, ring, weight, cache_seqlens=torch.tensor([0]))
    torch.testing.assert_close(y, causal_conv1d(x, weight))
    assert torch.equal(ring[0], x[0][:, [8, 9, 10, 7]])


def test_one_token_without_a_dimension_for_it(backend):
    x, weight, states = torch.randn(2, 5), torch.randn(5, 4), torch.randn(2, 2, 5, 3)
    states[1] = states[0]
    got = causal_conv1d_update(x, states[0], weight)
    assert torch.equal(got[..., None], causal_conv1d_update(x[..., None], states[1], weight))
    assert torch.equal(states[0], states[1])


def test_rows_of_a_larger_state(backend):
    x, weight, bias, rows = torch.randn(4, 5, 2), torch.randn(5, 3), torch.randn(5), torch.tensor([6, -1, 0, 3])
    states = torch.randn(8, 5, 4)
    untouched, used = states.clone(), [0, 2, 3]
    chosen = states[rows[used]]
    wanted = causal_conv1d_update(x[used], chosen, weight, bias)
    got = causal_conv1d_update(x, states, weight, bias, conv_state_indices=rows)
    assert torch.equal(got[used], wanted)
    assert not got[1].any()
    assert torch.equal(states[rows[used]], chosen)
    assert torch.equal(states[[1, 2, 4, 5, 7]], untouched[[1, 2, 4, 5, 7]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_state_keeps_its_dtype(backend, dtype):
    x, weight, state = torch.randn(2, 20).to(dtype), torch.randn(20, 4), torch.randn(2, 20, 3)
    whole = torch.cat([state, x[..., None].float()], -1)
    got = causal_conv1d_update(x, state, weight, activation="silu")
    assert (got.dtype, state.dtype) == (dtype, torch.float32)
    assert torch.equal(state, whole[..., 1:])
    wanted = F.silu((whole.double() * weight.double()).sum(-1))
    torch.testing.assert_close(got.double(), wanted, rtol=1e-2, atol=1e-2)


BAD_UPDATES = {
    r"x: expected shape \(B, D\) or \(B, D, L\) with D and L": ({"x": torch.ones(2, 4, 0)}, ValueError),
    "conv_state: expected 3 dimensions, got 2": ({"conv_state": torch.ones(2, 4)}, ValueError),
    r"conv_state: expected shape \(B, D, S\) = \(2, 4, 3\), got \(3, 4, 3\)": (
        {"conv_state": torch.ones(3, 4, 3)},
        ValueError,
    ),
    "conv_state: expected at least w - 1 = 3 tokens, got 2": ({"conv_state": torch.ones(2, 4, 2)}, ValueError),
    "conv_state: expected a tensor that can be written to, got an expanded one": (
        {"conv_state": torch.ones(1, 4, 3).expand(2, 4, 3)},
        ValueError,
    ),
    r"cache_seqlens: expected shape \(B,\) = \(2,\), got \(3,\)": (
        {"cache_seqlens": torch.ones(3, dtype=torch.int32)},
        ValueError,
    ),
    "conv_state_indices: expected int32 or int64, got torch.float32": (
        {"conv_state_indices": torch.ones(2)},
        TypeError,
    ),
    "activation: expected one of None, 'silu', 'swish', got 'gelu'": ({"activation": "gelu"}, ValueError),
}


@pytest.mark.parametrize("message", BAD_UPDATES)
def test_bad_input_of_an_update_is_named(message):
    change, error = BAD_UPDATES[message]
    arguments = {"x": torch.ones(2, 4), "conv_state": torch.ones(2, 4, 3), "weight": torch.ones(4, 4)} | change
    with pytest.raises(error, match=message):
        causal_conv1d_update(**arguments)


def test_a_row_that_the_state_does_not_have(backend):
    with pytest.raises(IndexError):
        causal_conv1d_update(
            torch.ones(2, 4), torch.ones(3, 4, 3), torch.ones(4, 4), conv_state_indices=torch.tensor([0, 3])
        )
