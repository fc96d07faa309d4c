"""Tests specific to directional_scan; test_matrix.py has those that all operators share."""

import itertools

import pytest
import torch
from torch import Tensor

import mtlkit
from mtlkit.operators.selective_scan import selective_scan_reference
from mtlkit.ops import directional_scan, orders, ss2d
from mtlkit.testing import SS2DShape, assert_accurate

B, D, N, R, L = 2, 5, 3, 2, 12


def inputs_of(K: int, tokens: int = L, *, own: bool = False, dtype=torch.float64, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    return {
        "u": normal(B, K, D, tokens) if own else normal(B, D, tokens),
        "x_dbl": normal(B, K, R + 2 * N, tokens),
        "dt_weight": normal(K, D, R),
        "dt_bias": normal(K, D) - 1,
        "A_logs": normal(K * D, N) / 2,
        "Ds": normal(K * D),
    }


def random_order(K: int, tokens: int = L, steps: int | None = None, samples: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randperm(tokens, generator=generator)[:steps] for _ in range((samples or 1) * K)]
    table = torch.stack(rows)
    return table.unflatten(0, (samples, K)) if samples else table


def by_hand(order: Tensor, seq_idx: Tensor | None = None, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Gather, the 1-D reference on every run of one sequence, scatter; the initial state is zero."""
    K = inputs["dt_weight"].shape[0]
    ys, lasts = [], []
    for b in range(B):
        for k in range(K):
            table = order[b, k] if order.dim() == 3 else order[k]
            u = inputs["u"][b, k] if inputs["u"].dim() == 4 else inputs["u"][b]
            u, x = u[:, table], inputs["x_dbl"][b, k][:, table]
            dts, Bs, Cs = x.split((R, N, N))
            own = slice(k * D, (k + 1) * D)
            cuts = [0, len(table)]
            if seq_idx is not None:
                visited = seq_idx[b, table]
                cuts = [0, *(t for t in range(1, len(table)) if visited[t] != visited[t - 1]), len(table)]
            y, last = torch.zeros_like(inputs["u"][0]).reshape(-1, inputs["u"].shape[-1])[:D], None
            for start, stop in itertools.pairwise(cuts):
                out, last = selective_scan_reference(
                    u[None, :, start:stop],
                    (inputs["dt_weight"][k] @ dts)[None, :, start:stop],
                    -inputs["A_logs"][own].exp(),
                    Bs[None, :, start:stop],
                    Cs[None, :, start:stop],
                    inputs["Ds"][own],
                    delta_bias=inputs["dt_bias"][k],
                    delta_softplus=True,
                )
                y = y.index_copy(1, table[start:stop], out[0])
            ys.append(y)
            lasts.append(last[0])
    return torch.stack(ys).unflatten(0, (B, K)), torch.stack(lasts).unflatten(0, (B, K))


def results(function, **inputs: Tensor) -> dict[str, Tensor]:
    leaves = {name: t.clone().requires_grad_() for name, t in inputs.items()}
    outputs = function(**leaves)
    generator = torch.Generator().manual_seed(3)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in outputs)
    loss.backward()
    return {str(i): t.detach() for i, t in enumerate(outputs)} | {f"d{name}": t.grad for name, t in leaves.items()}


BACKENDS = ("reference", "torch", "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(("steps", "samples"), [(None, None), (7, None), (None, B), (1, None)])
@pytest.mark.parametrize("sequences", [False, True])
def test_is_gather_scan_scatter(backend, own, steps, samples, sequences):
    """Outputs and every gradient by name, for random permutations and parts of them."""
    K = 3
    order, inputs = random_order(K, steps=steps, samples=samples), inputs_of(K, own=own)
    seq_idx = torch.arange(L).expand(B, -1) // 5 if sequences else None
    wanted = results(lambda **t: by_hand(order, seq_idx, **t), **inputs)
    with mtlkit.use_backend(backend):
        got = results(
            lambda **t: directional_scan(**t, order=order, seq_idx=seq_idx, merge=False, return_last_state=True),
            **inputs,
        )
        merged = directional_scan(**inputs, order=order, seq_idx=seq_idx)
    assert_accurate("merged", merged, wanted["0"].sum(1))
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_halves_make_a_whole(backend):
    """The last state of the first half is the initial state of the second half."""
    K, order, inputs = 2, random_order(2), inputs_of(2)

    def halves(**t: Tensor) -> tuple[Tensor, Tensor]:
        first, state = directional_scan(**t, order=order[:, :5], return_last_state=True)
        second, last = directional_scan(**t, order=order[:, 5:], initial_state=state, return_last_state=True)
        return first + second, last

    with mtlkit.use_backend(backend):
        got = results(halves, **inputs)
        wanted = results(lambda **t: directional_scan(**t, order=order, return_last_state=True), **inputs)
    assert got["1"].shape == (B, K, D, N)
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_initial_state_belongs_to_the_first_sequence(backend):
    inputs, order = inputs_of(1), orders.reverse(orders.forward(L))
    state = torch.ones(B, 1, D, N, dtype=torch.float64)
    with mtlkit.use_backend(backend):
        with_state, without = (
            directional_scan(**inputs, order=order, initial_state=s, seq_idx=torch.arange(L).expand(B, -1) // 4)
            for s in (state, None)
        )
    changed = (with_state != without).any(1).any(0)
    assert changed.tolist() == [False] * 8 + [True] * 4


def test_ss2d_is_the_cross_order():
    shape = SS2DShape(2, 6, 3, 4, 3, 2)
    inputs = shape.inputs(torch.float64)
    wanted = ss2d(**inputs)
    flat = {name: t.flatten(-2) if name in ("u", "x_dbl") else t for name, t in inputs.items()}
    order = orders.cross(3, 4)
    for one in (order, order.table(), orders.permutation(order.table())):
        assert_accurate("y", directional_scan(**flat, order=one).view_as(wanted), wanted)


def test_cu_seqlens_are_bounds_of_sequences():
    inputs = {name: t[:1] if name in ("u", "x_dbl") else t for name, t in inputs_of(2).items()}
    seq_idx = torch.tensor([[0] * 3 + [1] + [3] * 8])
    got, wanted = (
        directional_scan(**inputs, order=orders.both(L), **how)
        for how in ({"cu_seqlens": torch.tensor([0, 3, 4, 4, L])}, {"seq_idx": seq_idx})
    )
    assert torch.equal(got, wanted)


def test_outputs_lie_as_the_input():
    inputs, order = inputs_of(2), orders.both(L)
    last = inputs | {"u": inputs["u"].transpose(1, 2).contiguous().transpose(1, 2)}
    for backend in BACKENDS:
        with mtlkit.use_backend(backend):
            for merge in (True, False):
                assert directional_scan(**inputs, order=order, merge=merge).is_contiguous(), backend
                assert directional_scan(**last, order=order, merge=merge).stride(-2) == 1, backend


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"order": torch.zeros(2, L, dtype=torch.long)}, ValueError, "order: .* at most once, got token 0 twice"),
        ({"order": torch.arange(1, L + 1).repeat(2, 1)}, ValueError, f"order: expected tokens from 0 to 11, got {L}"),
        ({"order": -torch.arange(L).repeat(2, 1)}, ValueError, "order: expected tokens from 0 to 11, got -11"),
        ({"order": torch.ones(2, L)}, TypeError, "order: expected integers, got torch.float32"),
        ({"order": torch.arange(L)}, ValueError, "order: expected shape .K, T. or .B, K, T."),
        ({"order": torch.arange(L).repeat(3, 2, 1)}, ValueError, "order: expected shape .B, K, T. = .2, 2, 12."),
        ({"order": torch.arange(L + 1).repeat(2, 1)}, ValueError, "order: expected between 1 and L = 12 steps, got 13"),
        ({"order": orders.both(L + 1)}, ValueError, "order: expected one of L = 12 tokens, .* got both of 13"),
        ({"order": orders.forward(L)}, ValueError, "dt_weight: expected shape .K, D, R. = .1, 5, 2."),
        ({"order": "rows"}, TypeError, "order: expected a ScanOrder"),
        ({"u": torch.ones(B, 3, D, L)}, ValueError, "u: expected shape .B, K, D, L. = .2, 2, 5, 12."),
        ({"u": torch.ones(B, D)}, ValueError, "u: expected 3 or 4 dimensions"),
        ({"x_dbl": torch.ones(B, 2, R + 2 * N + 1, L)}, ValueError, "x_dbl: expected shape"),
        ({"initial_state": torch.ones(B, D, N)}, ValueError, "initial_state: expected 4 dimensions"),
        ({"initial_state": torch.ones(B, 2, N, D)}, ValueError, "initial_state: expected shape .B, K, D, N."),
        ({"seq_idx": torch.ones(B, L)}, TypeError, "seq_idx: expected int32 or int64"),
        ({"seq_idx": torch.ones(B, L - 1).int()}, ValueError, "seq_idx: expected shape .B, L. = .2, 12."),
        ({"seq_idx": torch.ones(B, L).int(), "cu_seqlens": torch.tensor([0, L])}, ValueError, "cu_seqlens: .* both"),
        ({"cu_seqlens": torch.tensor([0, L])}, ValueError, "cu_seqlens: expected u with a batch of 1"),
        ({"out_dtype": torch.int32}, TypeError, "out_dtype: expected"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        directional_scan(**{**inputs_of(2), "order": orders.both(L), **change})


@pytest.mark.parametrize("token", [-1, L, 2**31 - 1])
def test_an_order_is_read_within_range_where_nothing_checks_it(token):
    """A compiled graph does not check the values of a table, which may change in memory, too."""
    inputs, table = inputs_of(2), random_order(2)
    order = orders.permutation(table)
    order.table()[1, 5] = token
    with pytest.raises(ValueError, match="order: expected tokens of u, got one out of range"):
        directional_scan(**inputs, order=order)


@pytest.mark.parametrize("bounds", [[0, 5, 3, L], [1, L], [0, L - 1]])
def test_bad_bounds(bounds):
    inputs = {name: t[:1] if name in ("u", "x_dbl") else t for name, t in inputs_of(2).items()}
    with pytest.raises(ValueError, match=f"cu_seqlens: expected bounds that increase from 0 to L = {L}"):
        directional_scan(**inputs, order=orders.both(L), cu_seqlens=torch.tensor(bounds))
