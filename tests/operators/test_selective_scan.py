"""Tests specific to selective_scan; test_matrix.py has those that all operators share."""

import pytest
import torch

import mtlkit
from harness.calls import assert_meets, scan_call
from harness.matrix import at_level
from mtlkit import _native
from mtlkit.operators._launch import MAX_STATES
from mtlkit.ops import selective_scan
from mtlkit.testing import SelectiveScanShape, assert_accurate

SMALL = SelectiveScanShape(2, 24, 35, 16)


def scan(**inputs):
    """With softplus, because random time steps would otherwise be negative."""
    return selective_scan(**inputs, delta_softplus=True)


def doubles(inputs: dict) -> dict:
    return {name: t.double() for name, t in inputs.items()}


@pytest.mark.parametrize("length", [1, 2, 15, 16, 31, 32, 33, 63, 64, 65, 1000, 4097])
@pytest.mark.parametrize("groups", [1, 2])
def test_lengths(length, groups):
    inputs = SelectiveScanShape(1, 6, length, 2, G=groups).inputs()
    with mtlkit.use_backend("torch"):
        wanted, last = selective_scan(**doubles(inputs), delta_softplus=True, return_last_state=True)
    got, got_last = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
    assert_accurate("out", got, wanted)
    assert_accurate("last", got_last, last)


def test_published_semantics_in_closed_form():
    """One channel and one state, without softplus: h_t = exp(dt A) h_{t-1} + dt u B, computed by hand."""
    u, delta = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[0.5, 0.25, 1.0]]])
    B, C = torch.tensor([[[1.0, -1.0, 2.0]]]), torch.tensor([[[2.0, 1.0, 0.5]]])
    A, D, z = torch.tensor([[-2.0]]), torch.tensor([3.0]), torch.tensor([[[0.0, 1.0, -1.0]]])
    h1 = 0.5
    h2 = h1 * torch.tensor(-0.5).exp() - 0.5
    h3 = h2 * torch.tensor(-2.0).exp() + 6
    y = torch.stack([2 * torch.tensor(h1) + 3, h2 + 6, 0.5 * h3 + 9])
    wanted = (y * torch.nn.functional.silu(z[0, 0])).view(1, 1, 3)
    for backend in ("reference", "torch", "cpu"):
        with mtlkit.use_backend(backend):
            out, last = selective_scan(u, delta, A, B, C, D, z, return_last_state=True)
        torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(last, h3.view(1, 1, 1), rtol=1e-6, atol=1e-6)


def test_groups_of_one_are_a_batch_of_rows():
    """(B, 1, N, L) and (B, N, L) mean the same."""
    inputs = SMALL.inputs()
    grouped = {**inputs, "B": inputs["B"][:, None], "C": inputs["C"][:, None]}
    assert torch.equal(scan(**inputs), scan(**grouped))


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C"])
def test_one_argument_in_double_is_enough(name):
    """The scan is in double precision if any argument is."""
    inputs = SMALL.inputs()
    _, wanted = selective_scan(**doubles(inputs), delta_softplus=True, return_last_state=True)
    inputs[name] = inputs[name].double()
    out, last = selective_scan(**inputs, delta_softplus=True, return_last_state=True)
    assert (out.dtype, last.dtype) == (inputs["u"].dtype, torch.float64)
    torch.testing.assert_close(last, wanted, rtol=1e-10, atol=1e-10)


def test_public_alias():
    assert mtlkit.selective_scan_fn is selective_scan


RARE = [{}, {"constant": ("B",)}, {"constant": ("C",)}, {"without": ("D", "z", "delta_bias"), "softplus": False}]


@pytest.mark.parametrize("outputs", [("out",), ("last",), ("out", "last")], ids=str)
@pytest.mark.parametrize("rare", RARE, ids=str)
def test_compiled_gradients_of_either_output(outputs, rare):
    call = scan_call(SelectiveScanShape(2, 6, 9, 4), **rare)

    def chosen(**tensors):
        found = call.function(**tensors)
        return {name: found[name] for name in outputs}

    torch._dynamo.reset()
    compiled = torch.compile(chosen, backend="aot_eager", fullgraph=True)
    with mtlkit.use_backend("cpu"):
        got = call._replace(function=compiled).run()
    assert_meets(got, call._replace(function=chosen).expected())


def changed(**changes) -> dict:
    return {**SMALL.inputs(), **changes}


BAD = [
    (changed(u=None), TypeError, "u: expected a tensor, got NoneType"),
    (changed(u=torch.zeros(2, 24)), ValueError, "u: expected 3 dimensions, got 2"),
    (changed(u=torch.zeros(2, 24, 0)), ValueError, "u: expected shape .*at least 1"),
    (changed(delta=torch.zeros(2, 24, 34)), ValueError, r"delta: expected shape \(B, D, L\) = \(2, 24, 35\), got"),
    (changed(A=torch.zeros(24, 16, dtype=torch.complex64)), TypeError, "A: expected a real tensor"),
    (changed(A=torch.zeros(23, 16)), ValueError, r"A: expected shape \(D, N\) = \(24, 16\)"),
    (changed(A=torch.zeros(24, 0)), ValueError, "A: expected .*N at least 1"),
    (changed(B=torch.zeros(2, 15, 35)), ValueError, r"B: expected shape \(B, N, L\) = \(2, 16, 35\)"),
    (changed(B=torch.zeros(2, 5, 16, 35)), ValueError, "B: expected groups G that divide D = 24, got G = 5"),
    (changed(B=torch.zeros(2, 2, 16, 35)), ValueError, "C: expected as many groups as B has, 2, got 1"),
    (changed(C=torch.zeros(24, 16, dtype=torch.int32)), TypeError, "C: expected float32.*got torch.int32"),
    (changed(D=torch.zeros(2, 24)), ValueError, "D: expected 1 dimensions, got 2"),
    (changed(z=torch.zeros(2, 24, 36)), ValueError, "z: expected shape"),
    (changed(delta_bias=torch.zeros(24, device="meta")), ValueError, "delta_bias: expected device cpu.*got meta"),
]


@pytest.mark.parametrize(("inputs", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(inputs, error, message):
    with pytest.raises(error, match=message):
        selective_scan(**inputs)


def test_states_beyond_the_kernels_limit():
    inputs = SelectiveScanShape(1, 2, 3, MAX_STATES + 1).inputs()
    with mtlkit.use_backend("cpu"), pytest.raises(ValueError, match=f"at most {MAX_STATES} states"):
        selective_scan(**inputs)
    assert scan(**inputs).isfinite().all()
    most = SelectiveScanShape(1, 2, 3, MAX_STATES).inputs()
    with mtlkit.use_backend("reference"):
        wanted = scan(**doubles(most))
    assert_accurate("out", scan(**most), wanted)


@pytest.mark.parametrize("exponent", [1e-3, 0.3, 80.0, 87.0, 87.5, 90.0, 200.0])
def test_decays_at_the_ends_of_the_exponent(exponent):
    """Decays near 1, near the smallest normal number, and below it; each of the two exponentials computes some."""
    generator = torch.Generator().manual_seed(0)
    u, B, C = (torch.randn(1, n, 40, generator=generator) for n in (20, 16, 16))
    delta = torch.linspace(0.5, 1, 40).expand(1, 20, -1) * exponent
    delta = torch.where(torch.arange(40) % 3 == 0, 1e-2, delta)
    A = -torch.linspace(0.6, 1, 16).expand(20, -1).contiguous()
    with mtlkit.use_backend("reference"):
        wanted = selective_scan(*(t.double() for t in (u, delta, A, B, C)))
    assert_accurate("out", selective_scan(u, delta, A, B, C), wanted)


def test_decays_that_grow():
    """A may be positive: large exponents."""
    u, delta = torch.ones(1, 16, 3), torch.tensor([1.0, 88.0, 0.5]).expand(1, 16, -1)
    A, rows = torch.full((16, 1), 1.0), torch.ones(1, 1, 3)
    with mtlkit.use_backend("reference"):
        wanted = selective_scan(*(t.double() for t in (u, delta, A, rows, rows)))
    assert_accurate("out", selective_scan(u, delta, A, rows, rows), wanted)
    assert selective_scan(u, 2 * delta, A, rows, rows)[..., 1].isinf().all()


@pytest.mark.parametrize("level", _native.C.cpu_isa_levels() if _native.C else ())
def test_states_that_decay_slowly_have_no_drift(level):
    """A one-sided rounding error of exp(dt A) shows in its difference from 1, by which a sum of ones is divided.

    The mean over channels reveals it; a series for the exponential with too few terms is off by 1e-5 and more.
    """
    generator = torch.Generator().manual_seed(0)
    A = -0.02 * torch.rand(4096, 1, generator=generator) - 0.001
    ones = torch.ones(1, 4096, 2000)
    with at_level(level), mtlkit.use_backend("cpu"):
        found = selective_scan(ones, ones, A, ones[:, :1], ones[:, :1])[0, :, -1].double()
    a = A[:, 0].double()
    drift = found / (torch.expm1(2000 * a) / torch.expm1(a)) - 1
    for far in (0.005, 0.01, 0.02):
        assert drift[(-a > far / 2) & (-a <= far)].mean().abs() < 7e-6
