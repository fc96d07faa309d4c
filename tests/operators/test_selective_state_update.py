"""selective_state_update, compared with the selective scan of the sequence and with its formula in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mtlkit
from harness.layouts import part, repeated, reversed_order, spread, swapped
from mtlkit import _native
from mtlkit.ops import selective_scan, selective_state_update
from mtlkit.testing import SelectiveScanShape, assert_accurate

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
OPTIONAL = ("D", "z", "dt_bias")


@pytest.fixture(params=["cpu", "torch"])
def backend(request: pytest.FixtureRequest):
    with mtlkit.use_backend(request.param):
        yield request.param


def inputs(batch=3, heads=None, channels=19, states=16, groups=None, dtype=torch.float32) -> dict[str, Tensor]:
    """With heads if their number is given, and with groups."""
    of = (channels,) if heads is None else (heads, channels)
    shared = (batch, states) if groups is None else (batch, groups, states)
    found = {
        "state": torch.randn(batch, *of, states),
        "x": torch.randn(batch, *of),
        "dt": torch.randn(batch, *of),
        "A": -torch.rand(*of, states) - 0.1,
        "B": torch.randn(shared),
        "C": torch.randn(shared),
        "D": torch.randn(of),
        "z": torch.randn(batch, *of),
        "dt_bias": torch.randn(of),
    }
    return {name: t.to(dtype) for name, t in found.items()}


def formula(state, x, dt, A, B, C, D=None, z=None, dt_bias=None) -> tuple[Tensor, Tensor]:
    """The output and the new state for double tensors with heads and groups, with softplus."""
    dt = F.softplus(dt if dt_bias is None else dt + dt_bias)
    B, C = (torch.stack([t[:, h * t.shape[1] // A.shape[0]] for h in range(A.shape[0])], 1)[:, :, None] for t in (B, C))
    h = torch.exp(dt[..., None] * A) * state + (dt * x)[..., None] * B
    y = (h * C).sum(-1)
    y = y if D is None else y + D * x
    return y if z is None else y * F.silu(z), h


def doubles(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.double() for name, t in given.items()}


def assert_right(given: dict[str, Tensor]) -> None:
    """Compares output and state up to the rounding of their dtypes."""
    y, h = formula(**doubles(given))
    got = selective_state_update(**given, dt_softplus=True)
    assert got.dtype == given["x"].dtype
    for name, value, wanted in (("y", got, y), ("state", given["state"], h)):
        if value.dtype in (torch.float32, torch.float64):
            assert_accurate(name, value, wanted)
        else:
            torch.testing.assert_close(value.double(), wanted, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("optional", [OPTIONAL, ()], ids=["all", "none"])
def test_steps_are_the_scan_of_the_whole(backend, optional, softplus):
    given = SelectiveScanShape(2, 19, 7, 16).inputs()
    if not softplus:
        given |= {"delta": 0.1 * given["delta"].abs(), "delta_bias": 0.01 * given["delta_bias"].abs()}
    names = {"D": "D", "z": "z", "dt_bias": "delta_bias"}
    given = {name: t for name, t in given.items() if name not in [names[n] for n in OPTIONAL if n not in optional]}
    wanted, last = selective_scan(**given, delta_softplus=softplus, return_last_state=True)
    state = torch.zeros(2, 19, 16)
    steps = []
    for t in range(7):
        step = {name: given[name][..., t] for name in ("B", "C")} | {"x": given["u"][..., t], "A": given["A"]}
        step |= {"dt": given["delta"][..., t]} | ({"z": given["z"][..., t]} if "z" in given else {})
        step |= {name: given[names[name]] for name in ("D", "dt_bias") if names[name] in given}
        steps.append(selective_state_update(state, **step, dt_softplus=softplus))
    torch.testing.assert_close(torch.stack(steps, -1), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "size",
    [(2, 4, 20, 16, 2), (1, 1, 1, 1, 1), (2, 6, 5, 40, 6), (3, 2, 33, 3, 1), (1, 3, 64, 128, 3)],
    ids=str,
)
def test_heads_and_groups(backend, size, dtype):
    assert_right(inputs(*size, dtype=dtype))


@pytest.mark.parametrize("name", ["state", "x", "dt", "A", "B", "C", "D", "z", "dt_bias"])
def test_layouts_and_dtypes_of_each_argument(backend, name):
    given = inputs(2, 4, 20, 16, 2)
    places = [spread(-1), part(-1, before=3), reversed_order, swapped]
    if name != "state":
        places.append(repeated(-1))
    for place in places:
        assert_right(given | {"state": given["state"].clone()} | {name: place(given[name].clone())})
    for dtype in DTYPES:
        assert_right(given | {"state": given["state"].clone()} | {name: given[name].to(dtype, copy=True)})


def test_without_heads_there_is_one(backend):
    given = inputs(heads=1, groups=1)
    flat = {name: t.squeeze(1 if name in ("state", "x", "dt", "B", "C", "z") else 0) for name, t in given.items()}
    flat["state"] = flat["state"].clone()
    assert torch.equal(selective_state_update(**flat), selective_state_update(**given)[:, 0])
    assert torch.equal(flat["state"], given["state"][:, 0])


def test_every_instruction_set(isa):
    for dtype in DTYPES:
        with mtlkit.use_backend("cpu"):
            assert_right(inputs(2, 3, 37, 19, 3, dtype=dtype))


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_threads_share_the_work(threads, count):
    given = inputs(5, 4, 100, 16, 2)
    wanted = given | {"state": given["state"].clone()}
    threads(1)
    with mtlkit.use_backend("cpu"):
        y = selective_state_update(**wanted)
        threads(count)
        assert torch.equal(selective_state_update(**given), y)
    assert torch.equal(given["state"], wanted["state"])


def test_rows_of_a_larger_state(backend):
    given, rows, used = inputs(4), torch.tensor([6, -1, 0, 3]), [0, 2, 3]
    states = torch.randn(8, *given["state"].shape[1:])
    untouched = states.clone()
    chosen = {n: t[used] if n in ("x", "dt", "B", "C", "z") else t for n, t in given.items()}
    chosen["state"] = states[rows[used]]
    wanted = selective_state_update(**chosen)
    got = selective_state_update(**given | {"state": states}, state_batch_indices=rows)
    assert torch.equal(got[used], wanted)
    assert not got[1].any()
    assert torch.equal(states[rows[used]], chosen["state"])
    assert torch.equal(states[[1, 2, 4, 5, 7]], untouched[[1, 2, 4, 5, 7]])
    with pytest.raises(IndexError):
        selective_state_update(**given | {"state": states}, state_batch_indices=torch.tensor([0, 1, 2, 8]))


BAD = {
    "state: expected 3 or 4 dimensions, got 2": {"state": torch.ones(3, 19)},
    r"state: expected shape \(B, D, N\) with no size of 0": {"state": torch.ones(3, 19, 0)},
    "state: expected a tensor that can be written to, got an expanded one": {
        "state": torch.ones(1, 19, 16).expand(3, 19, 16)
    },
    r"x: expected shape \(B, D\) = \(3, 19\), got \(2, 19\)": {"x": torch.ones(2, 19)},
    r"dt: expected shape \(B, D\) = \(3, 19\), got \(3, 18\)": {"dt": torch.ones(3, 18)},
    r"A: expected shape \(D, N\) = \(19, 16\), got \(19, 15\)": {"A": torch.ones(19, 15)},
    "A: expected a real tensor, got torch.complex64": {"A": torch.ones(19, 16, dtype=torch.complex64)},
    r"B: expected shape \(B, N\) = \(3, 16\), got \(3, 4\)": {"B": torch.ones(3, 4)},
    "C: expected 2 dimensions, got 3": {"C": torch.ones(3, 1, 16)},
    r"z: expected shape \(B, D\) = \(3, 19\), got \(4, 19\)": {"z": torch.ones(4, 19)},
    "dt_bias: expected 1 dimensions, got 2": {"dt_bias": torch.ones(1, 19)},
    "D: expected device cpu, where x is, got meta": {"D": torch.ones(19, device="meta")},
    "state_batch_indices: expected int32 or int64": {"state_batch_indices": torch.ones(3)},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises((TypeError, ValueError), match=message):
        selective_state_update(**inputs() | BAD[message])


BAD_GROUPS = {
    "B: expected groups G that divide H = 4, got G = 3": {"B": torch.ones(2, 3, 16), "C": torch.ones(2, 3, 16)},
    r"C: expected shape \(B, G, N\) = \(2, 2, 16\), got \(2, 4, 16\)": {"C": torch.ones(2, 4, 16)},
    "C: expected 3 dimensions, as B has, got 2": {"C": torch.ones(2, 16)},
}


@pytest.mark.parametrize("message", BAD_GROUPS)
def test_bad_groups_are_named(message):
    with pytest.raises(ValueError, match=message):
        selective_state_update(**inputs(2, 4, 20, 16, 2) | BAD_GROUPS[message])
