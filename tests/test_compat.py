"""mamba-ssm's and VMamba's functions under their own names: semantics, gradients, registration."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mtlkit
from mtlkit import compat
from mtlkit.testing import assert_accurate

# --- what the published functions compute, restated in float64 --------------------------------------------------------


def restated_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False) -> tuple[Tensor, Tensor]:
    """One token after the other: the output (B, D, L) and the last state (B, D, N)."""
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    dt = F.softplus(dt) if delta_softplus else dt

    def at(rows: Tensor, t: int) -> Tensor:  # what token t multiplies the states of each channel with
        if rows.dim() == 2:
            return rows  # (D, N)
        row = rows[..., t]  # (B, N) or (B, G, N)
        return row[:, None] if row.dim() == 2 else row.repeat_interleave(u.shape[1] // row.shape[1], 1)  # (B, D, N)

    h, ys = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        step = dt[:, :, t, None]  # (B, D, 1)
        h = torch.exp(step * A) * h + step * u[:, :, t, None] * at(B, t)  # (B, D, N)
        ys.append((h * at(C, t)).sum(-1))  # (B, D)
    y = torch.stack(ys, -1)
    y = y if D is None else y + D[:, None] * u
    return (y if z is None else y * F.silu(z)), h


def restated_inner(xz, conv, conv_bias, x_proj, dt_proj, A, B, C, D, delta_bias, B_bias, C_bias, softplus, A_b=None):
    """Mamba's block up to the output projection: (B, D, L)."""
    x, z = xz.chunk(2, 1)
    taps, length = conv.shape[-1], x.shape[-1]
    padded = torch.cat((x.new_zeros(*x.shape[:2], taps - 1), x), -1)
    x = sum(conv[:, 0, i, None] * padded[..., i : i + length] for i in range(taps))
    x = F.silu(x if conv_bias is None else x + conv_bias[:, None])  # (B, D, L)
    values = torch.einsum("md,bdl->bml", x_proj, x)
    rank, states = dt_proj.shape[1], A.shape[1]
    delta = torch.einsum("dr,brl->bdl", dt_proj, values[:, :rank])
    if B is None:
        B = values[:, rank : rank + states] + (0 if B_bias is None else B_bias[:, None])
    if C is None:
        C = values[:, -states:] + (0 if C_bias is None else C_bias[:, None])
    y, _ = restated_scan(x, delta, A, B, C, D, z, delta_bias, softplus)
    if A_b is not None:
        x, delta, B, C, z = (t if t.dim() == 2 else t.flip(-1) for t in (x, delta, B, C, z))
        y = y + restated_scan(x, delta, A_b, B, C, D, z, delta_bias, softplus)[0].flip(-1)
    return y


# --- the scan ---------------------------------------------------------------------------------------------------------

KINDS = ("constant", "variable", "grouped")
SHORT = st.integers(1, 80)
LENGTHS = st.one_of(SHORT, SHORT, SHORT, st.sampled_from([127, 1025, 4096, 4097]))


def inputs(batch, groups, width, length, states, kinds, given_parts, dtype, lowest=0.0) -> dict[str, Tensor]:
    """Arguments by name, time steps from `lowest` on; numbers that `dtype` can hold, in float64."""
    channels = groups * width
    shapes = {"constant": (channels, states), "variable": (batch, states, length)}
    shapes["grouped"] = (batch, groups, states, length)
    arguments = {
        "u": torch.randn(batch, channels, length),
        "delta": torch.rand(batch, channels, length) + lowest,
        "A": -torch.rand(channels, states) - 0.05,
        "B": torch.randn(shapes[kinds[0]]),
        "C": torch.randn(shapes[kinds[1]]),
    }
    optional = {"D": (channels,), "z": (batch, channels, length), "delta_bias": (channels,)}
    arguments |= {name: torch.randn(optional[name]) for name in given_parts}
    if "delta_bias" in arguments:
        arguments["delta_bias"] = 0.3 * arguments["delta_bias"].abs()
    return {name: t.to(dtype).double() for name, t in arguments.items()}


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
    # what plain PyTorch makes of it: the same in float32, rounded at the end
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
    """Arguments of the block in float64; B and C projected but for those in `given_rows`."""
    torch.manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    shapes = {"B": (BATCH, STATES, LENGTH), "C": (WIDTH, STATES)}  # a varying and a constant one
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


def assert_same_with_gradients(function, exact_function, arguments: dict) -> None:
    results = []
    for call in (function, exact_function):
        leaves = {n: None if v is None else v.clone().requires_grad_() for n, v in arguments.items()}
        y = call(leaves)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype))
        results.append({"out": y} | {n: v.grad for n, v in leaves.items() if v is not None})
    for name, exact in results[1].items():
        assert_accurate(name, results[0][name], exact, gradient=name != "out")


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("given_rows", ["", "B", "C", "BC"])
def test_inner(given_rows, optional, softplus):
    assert_same_with_gradients(
        lambda leaves: compat.mamba_inner_fn(**leaves, delta_softplus=softplus),
        lambda leaves: restated_block(leaves, softplus),
        block(given_rows, optional),
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

    x, delta, B, C, z = compat._project(*list(arguments.values())[:5], *list(arguments.values())[7:10], None, None)
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
        ({"A": torch.ones(WIDTH, STATES, dtype=torch.complex64)}, TypeError, "complex state spaces are not served"),
        ({"xz": torch.ones(1, 2 * WIDTH + 1, 4)}, ValueError, r"xz: expected shape \(B, 2 D, L\)"),
        ({"x_proj_weight": torch.ones(3, WIDTH)}, ValueError, r"x_proj_weight: expected .* = \(8, 6\), got \(3, 6\)"),
        ({"conv1d_weight": torch.ones(WIDTH, 4)}, ValueError, "conv1d_weight: expected 3 dimensions"),
        ({"B": torch.ones(WIDTH, STATES), "b_rms_weight": torch.ones(STATES)}, ValueError, "x_proj_weight|B: expected"),
    ],
)
def test_bad_arguments_are_named(changed, error, message):
    with pytest.raises(error, match=message):
        compat.mamba_inner_fn(**block() | changed)


# --- VMamba's extension -----------------------------------------------------------------------------------------------


class _Oflex(torch.autograd.Function):
    """As VMamba calls its extension."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, delta_bias, softplus, oflex):
        import selective_scan_cuda_oflex

        ctx.softplus = softplus
        out, x, *_ = selective_scan_cuda_oflex.fwd(u, delta, A, B, C, D, delta_bias, softplus, 1, oflex)
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, x)
        ctx.last = x[:, :, -1, 1::2]
        return out

    @staticmethod
    def backward(ctx, dout):
        import selective_scan_cuda_oflex

        *tensors, x = ctx.saved_tensors
        gradients = selective_scan_cuda_oflex.bwd(*tensors, dout.contiguous(), x, ctx.softplus, 1)
        return *gradients, None, None


@pytest.fixture
def _vmamba():
    assert compat.install_vmamba()
    yield
    compat.uninstall_vmamba()


@pytest.mark.usefixtures("_vmamba")
@pytest.mark.parametrize("optional", [True, False])
def test_extension(optional):
    arguments = inputs(2, 2, 3, 13, 4, ("grouped", "grouped"), ("D", "delta_bias") if optional else (), torch.float64)
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")

    def call(leaves):
        return _Oflex.apply(*(leaves.get(name) for name in names), True, True)

    assert_same_with_gradients(call, lambda leaves: restated_scan(**leaves, delta_softplus=True)[0], arguments)


@pytest.mark.usefixtures("_vmamba")
@pytest.mark.parametrize("oflex", [True, False])
def test_extension_widens_the_output_if_asked(oflex):
    exact = inputs(1, 2, 3, 13, 4, ("grouped", "grouped"), ("D",), torch.float16)
    leaves = {name: t.half().requires_grad_() for name, t in exact.items()}
    out = _Oflex.apply(*leaves.values(), None, False, oflex)
    assert out.dtype == (torch.float32 if oflex else torch.float16)
    y, last = restated_scan(**exact)
    assert_accurate("out", out, y, y.half())
    out.sum().backward()
    assert {leaf.grad.dtype for leaf in leaves.values()} == {torch.float16}
    function = compat.selective_scan_oflex(**leaves, delta_softplus=False, oflex=oflex)
    assert torch.equal(function, out)
    import selective_scan_cuda_oflex

    with torch.no_grad():
        _, x = selective_scan_cuda_oflex.fwd(*leaves.values(), None, False, 1, oflex)
    assert_accurate("last state", x[:, :, -1, 1::2], last)


# --- registration -----------------------------------------------------------------------------------------------------

ABSENT = """
import importlib, sys, mtlkit, mtlkit.compat
from mtlkit import compat
name = "mamba_ssm.ops.selective_scan_interface"

def absent(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return True

assert absent(name) and absent("selective_scan_cuda_oflex")  # nothing happens at import
assert compat.install_mamba_ssm() and compat.install_mamba_ssm() and compat.install_vmamba()
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn, selective_scan_ref, mamba_inner_fn
import mamba_ssm, selective_scan_cuda_oflex
assert selective_scan_fn is mamba_ssm.selective_scan_fn is mtlkit.selective_scan_fn
assert importlib.util.find_spec(name) is not None
compat.uninstall_mamba_ssm(); compat.uninstall_mamba_ssm(); compat.uninstall_vmamba()
assert absent(name) and absent("mamba_ssm") and absent("selective_scan_cuda_oflex")
print("done")
"""

PRESENT = """
from mtlkit import compat
assert not compat.install_mamba_ssm()
from mamba_ssm.ops import selective_scan_interface as real
assert real.selective_scan_fn == "theirs"
assert compat.install_mamba_ssm(replace=True)
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
assert selective_scan_fn is compat.selective_scan_fn
from mamba_ssm.modules.block import found  # what mtlkit does not serve is still theirs, and finds mtlkit's scan
assert found is compat.selective_scan_fn
compat.uninstall_mamba_ssm()
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
assert selective_scan_fn == "theirs"
print("done")
"""


def test_registration_where_it_is_absent(run_python):
    process = run_python("-c", ABSENT)
    assert process.stdout == "done\n", process.stderr


def test_registration_beside_the_real_one(run_python, tmp_path):
    package = tmp_path / "mamba_ssm"
    for folder in (package, package / "ops", package / "modules"):
        folder.mkdir()
        (folder / "__init__.py").touch()
    (package / "ops" / "selective_scan_interface.py").write_text("selective_scan_fn = 'theirs'\n")
    text = "from mamba_ssm.ops.selective_scan_interface import selective_scan_fn as found\n"
    (package / "modules" / "block.py").write_text(text)
    process = run_python("-c", PRESENT, path=[tmp_path])
    assert process.stdout == "done\n", process.stderr
