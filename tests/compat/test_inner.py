"""mamba-ssm's functions and layers: semantics, gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mtlkit
from harness.mamba import assert_same_with_gradients, inputs, restated_inner, restated_scan
from mtlkit import compat
from mtlkit.compat import _inner
from mtlkit.testing import assert_accurate

# --- the scan ---------------------------------------------------------------------------------------------------------

KINDS = ("constant", "variable", "grouped")
SHORT = st.integers(1, 80)
LENGTHS = st.one_of(SHORT, SHORT, SHORT, st.sampled_from([127, 1025, 4096, 4097]))


@st.composite
def calls(draw, lengths, dtypes):
    kinds = draw(st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)))
    groups = draw(st.integers(1, 3)) if "variable" not in kinds else 1
    parts = [name for name in ("D", "z", "delta_bias") if draw(st.booleans())]
    dtype = draw(st.sampled_from(dtypes))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    sizes = draw(st.integers(1, 2)), groups, draw(st.integers(1, 9)), draw(lengths), draw(st.integers(1, 17))
    softplus = draw(st.booleans())  # without it a negative step would grow without bound
    return inputs(*sizes, kinds, parts, dtype, -1.0 if softplus else 0.0), {"delta_softplus": softplus}, dtype


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(calls(LENGTHS, (torch.float64, torch.float32, torch.bfloat16, torch.float16)), st.booleans())
def test_scan_is_what_mamba_ssm_documents(call, return_last_state):
    arguments, flags, dtype = call
    got = mtlkit.selective_scan_fn(
        **{name: t.to(dtype) for name, t in arguments.items()}, **flags, return_last_state=return_last_state
    )
    exact, exact_last = restated_scan(**arguments, **flags)
    if return_last_state:
        got, last = got
        assert last.dtype == torch.promote_types(dtype, torch.float32)
        assert_accurate("last state", last, exact_last)
    assert got.dtype == dtype
    # plain PyTorch's result: computed the same way in float32, and rounded at the end
    plain = restated_scan(**{n: t.float() for n, t in arguments.items()}, **flags)[0].to(dtype)
    assert_accurate("out", got, exact, plain)


@settings(max_examples=30, deadline=None, database=None, derandomize=True)
@given(calls(st.integers(1, 70), (torch.float64, torch.float32)))
def test_gradients_are_those_of_the_documented_scan(call):
    arguments, flags, dtype = call
    exact = {name: t.clone().requires_grad_() for name, t in arguments.items()}
    leaves = {name: t.to(dtype).requires_grad_() for name, t in arguments.items()}
    y, last = restated_scan(**exact, **flags)
    got, got_last = mtlkit.selective_scan_fn(**leaves, **flags, return_last_state=True)
    dy, dlast = torch.randn_like(y), torch.randn_like(last)
    torch.autograd.backward((y, last), (dy, dlast))
    torch.autograd.backward((got, got_last), (dy.to(dtype), dlast.to(dtype)))
    for name, leaf in leaves.items():
        assert_accurate(name, leaf.grad, exact[name].grad, gradient=True)


def test_ref_is_the_same_function():
    arguments = inputs(2, 2, 3, 17, 5, ("grouped", "constant"), ("D", "z", "delta_bias"), torch.float32)
    for last in (False, True):
        got = compat.selective_scan_ref(**arguments, delta_softplus=True, return_last_state=last)
        exact = restated_scan(**arguments, delta_softplus=True)
        for g, e in zip(got, exact, strict=True) if last else ((got, exact[0]),):
            assert_accurate("ref", g, e)


# --- Mamba's block ----------------------------------------------------------------------------------------------------

BATCH, WIDTH, LENGTH, STATES, RANK, OUT = 2, 6, 11, 3, 2, 5


def block(given_rows: str = "", optional: bool = True) -> dict[str, Tensor | None]:
    """Arguments of the block in float64; B and C are projected unless listed in `given_rows`."""
    torch.manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    shapes = {"B": (BATCH, STATES, LENGTH), "C": (WIDTH, STATES)}  # one varies, one is constant
    rows = RANK + STATES * (2 - len(given_rows))
    return {
        "xz": normal(BATCH, 2 * WIDTH, LENGTH),
        "conv1d_weight": normal(WIDTH, 1, 4),
        "conv1d_bias": normal(WIDTH) if optional else None,
        "x_proj_weight": normal(rows, WIDTH) / WIDTH,
        "delta_proj_weight": normal(WIDTH, RANK),
        "out_proj_weight": normal(OUT, WIDTH),
        "out_proj_bias": normal(OUT) if optional else None,
        "A": -torch.rand(WIDTH, STATES, dtype=torch.float64),
        "B": normal(*shapes["B"]) if "B" in given_rows else None,
        "C": normal(*shapes["C"]) if "C" in given_rows else None,
        "D": normal(WIDTH) if optional else None,
        "delta_bias": normal(WIDTH) if optional else None,
        "B_proj_bias": normal(STATES) if optional and "B" not in given_rows else None,
        "C_proj_bias": normal(STATES) if optional and "C" not in given_rows else None,
    }


def restated_block(arguments: dict, softplus: bool, A_b: Tensor | None = None, project: bool = True) -> Tensor:
    weight, bias = (arguments[name] for name in ("out_proj_weight", "out_proj_bias"))
    y = restated_inner(*(v for n, v in arguments.items() if not n.startswith("out_proj")), softplus, A_b)
    return F.linear(y.transpose(1, 2), weight, bias) if project else y


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("given_rows", ["", "B", "C", "BC"])
def test_inner(given_rows, optional, softplus):
    assert_same_with_gradients(
        lambda leaves: compat.mamba_inner_fn(**leaves, delta_softplus=softplus),
        lambda leaves: restated_block(leaves, softplus),
        block(given_rows, optional),
    )


@pytest.mark.parametrize("taps", [1, 2, 3, 6])
def test_inner_of_other_widths(taps):
    arguments = block() | {"conv1d_weight": torch.randn(WIDTH, 1, taps, dtype=torch.float64)}
    assert_same_with_gradients(
        lambda leaves: compat.mamba_inner_fn(**leaves), lambda leaves: restated_block(leaves, True), arguments
    )


def test_inner_ref_and_without_projection():
    arguments = block()
    assert_accurate("ref", compat.mamba_inner_ref(**arguments), restated_block(arguments, True))
    inner = {name: value for name, value in arguments.items() if not name.startswith("out_proj")}
    assert_same_with_gradients(
        lambda leaves: compat.mamba_inner_fn_no_out_proj(**leaves),
        lambda leaves: restated_inner(*leaves.values(), True),
        inner,
    )


@pytest.mark.parametrize("given_rows", ["", "C"])
def test_both_directions(given_rows):
    assert_same_with_gradients(
        lambda leaves: compat.bimamba_inner_fn(**leaves),
        lambda leaves: restated_block({n: v for n, v in leaves.items() if n != "A_b"}, True, leaves["A_b"]),
        block(given_rows) | {"A_b": -torch.rand(WIDTH, STATES, dtype=torch.float64)},
    )


def test_inner_normalises_what_is_asked():
    arguments = block(optional=False)
    rms = {name: torch.rand(size).double() for name, size in (("b", STATES), ("c", STATES), ("dt", WIDTH))}
    eps = 1e-3
    weights = {f"{name}_rms_weight": weight for name, weight in rms.items()}
    got = compat.mamba_inner_fn(**arguments, **weights, b_c_dt_rms_eps=eps)

    def normalised(v: Tensor, weight: Tensor) -> Tensor:  # over dimension 1
        return v / (v.square().mean(1, keepdim=True) + eps).sqrt() * weight[:, None]

    x, delta, B, C, z = _inner._project(*list(arguments.values())[:5], *list(arguments.values())[7:10], None, None)
    rows = normalised(delta, rms["dt"]), arguments["A"], normalised(B, rms["b"]), normalised(C, rms["c"])
    y, _ = restated_scan(x, *rows, z=z, delta_softplus=True)
    assert_accurate("out", got, F.linear(y.transpose(1, 2), arguments["out_proj_weight"]))


def test_inner_under_autocast():
    arguments = {name: None if v is None else v.float() for name, v in block().items()}
    exact = restated_block(block(), True)
    with torch.autocast("cpu", torch.bfloat16):
        got, plain = compat.mamba_inner_fn(**arguments), compat.mamba_inner_ref(**arguments)
    assert got.dtype == torch.bfloat16
    assert_accurate("out", got, exact, plain)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"A": torch.ones(WIDTH, STATES, dtype=torch.complex64)}, TypeError, "complex state spaces are not supported"),
        ({"xz": torch.ones(1, 2 * WIDTH + 1, 4)}, ValueError, r"xz: expected shape \(B, 2 D, L\)"),
        ({"x_proj_weight": torch.ones(3, WIDTH)}, ValueError, r"x_proj_weight: expected .* = \(8, 6\), got \(3, 6\)"),
        ({"conv1d_weight": torch.ones(WIDTH, 4)}, ValueError, "conv1d_weight: expected 3 dimensions"),
        ({"B": torch.ones(WIDTH, STATES), "b_rms_weight": torch.ones(STATES)}, ValueError, "x_proj_weight|B: expected"),
    ],
)
def test_bad_arguments_are_named(changed, error, message):
    with pytest.raises(error, match=message):
        compat.mamba_inner_fn(**block() | changed)
