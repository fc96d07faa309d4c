"""The package `causal_conv1d` and its extension, called as in each published version."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.mamba import assert_same_with_gradients
from mtlkit import compat
from mtlkit.testing import assert_accurate

BATCH, CHANNELS, LENGTH, TAPS = 2, 5, 9, 4


@pytest.fixture(autouse=True)
def _installed():
    assert compat.install("causal_conv1d", "causal_conv1d_cuda")
    yield
    compat.uninstall()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def arguments(bias: bool = True) -> dict[str, Tensor | None]:
    return {
        "x": normal(BATCH, CHANNELS, LENGTH),
        "weight": normal(CHANNELS, TAPS),
        "bias": normal(CHANNELS) if bias else None,
    }


def restated(x, weight, bias, silu, before=None) -> Tensor:
    padded = torch.cat((x.new_zeros(*x.shape[:2], TAPS - 1) if before is None else before, x), -1)
    y = sum(weight[:, i, None] * padded[..., i : i + x.shape[-1]] for i in range(TAPS))
    y = y if bias is None else y + bias[:, None]
    return F.silu(y) if silu else y


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("style", ["fourth", "named"])
def test_both_signatures(bias, silu, style):
    from causal_conv1d import causal_conv1d_fn

    activation = "silu" if silu else None

    def call(leaves):
        given = (activation,) if style == "fourth" else ()
        return causal_conv1d_fn(*leaves.values(), *given, **{} if given else {"activation": activation})

    assert_same_with_gradients(call, lambda leaves: restated(*leaves.values(), silu), arguments(bias))


def test_states_in_and_out():
    from causal_conv1d import causal_conv1d_fn
    from causal_conv1d.causal_conv1d_interface import causal_conv1d_ref

    given = arguments()
    x, weight, bias = given.values()
    place = torch.full((BATCH, CHANNELS, TAPS - 1), torch.nan, dtype=torch.float64)
    y, states = causal_conv1d_fn(x, weight, bias, return_final_states=True, final_states_out=place, activation="swish")
    assert states is place
    assert torch.equal(states, x[..., -TAPS + 1 :])
    assert_accurate("ref", causal_conv1d_ref(x, weight, bias, activation="silu"), y)
    assert_accurate("ref", causal_conv1d_ref(x, weight, bias, "silu"), y)
    more = normal(BATCH, CHANNELS, 3)
    found = causal_conv1d_fn(more, weight, bias, None, states, activation="silu")
    assert_accurate("out", found, restated(torch.cat((x, more), -1), weight, bias, True)[..., LENGTH:])
    seq_idx = torch.tensor([[0] * 4 + [1] * 5] * BATCH, dtype=torch.int32)
    found = causal_conv1d_fn(x, weight, bias, seq_idx, activation="silu")
    parts = [restated(part, weight, bias, True) for part in (x[..., :4], x[..., 4:])]
    assert_accurate("sequences", found, torch.cat(parts, -1))


def test_token_by_token():
    from causal_conv1d import causal_conv1d_update
    from causal_conv1d.causal_conv1d_interface import causal_conv1d_update_ref

    x, weight, bias = arguments().values()
    for update in (causal_conv1d_update, causal_conv1d_update_ref):
        state = torch.zeros(BATCH, CHANNELS, TAPS, dtype=torch.float64)
        steps = [update(x[..., t], state, weight, bias, "silu") for t in range(LENGTH)]
        assert_accurate("out", torch.stack(steps, -1), restated(x, weight, bias, True))


def test_last_tokens_of_each_sequence():
    from causal_conv1d.causal_conv1d_varlen import causal_conv1d_varlen_states

    x = torch.arange(1.0, 9)[:, None] + torch.zeros(3)  # (T, D)
    states = causal_conv1d_varlen_states(x, torch.tensor([0, 2, 8]), 4)
    assert states[:, 0].tolist() == [[0, 0, 1, 2], [5, 6, 7, 8]]
    assert states.shape == (2, 3, 4)


# --- the extension ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2", "1.6"])
def test_extension(version):
    import causal_conv1d_cuda

    class Call(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias):
            ctx.save_for_backward(x, weight, bias)
            if version == "1.6":
                out = torch.empty_like(x)
                assert causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, None, None, out, None, True) is None
                return out
            more = {"1.0": (), "1.1": (None,), "1.2": (None, None, None)}[version]
            return causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, *more, True)

        @staticmethod
        def backward(ctx, dout):
            x, weight, bias = ctx.saved_tensors
            dx = torch.full_like(x, torch.nan)
            if version == "1.6":
                places = dx, torch.empty_like(weight), torch.empty_like(bias), None
                causal_conv1d_cuda.causal_conv1d_bwd(x, weight, bias, dout, None, None, None, *places, True)
                return places[:3]
            more = {"1.0": (dx,), "1.1": (None, dx), "1.2": (None, None, None, dx, False)}[version]
            found = causal_conv1d_cuda.causal_conv1d_bwd(x, weight, bias, dout, *more, True)
            assert len(found) == (4 if version == "1.2" else 3)
            assert found[0] is dx
            return found[:3]

    assert_same_with_gradients(
        lambda leaves: Call.apply(*leaves.values()), lambda leaves: restated(*leaves.values(), True), arguments()
    )
    x, weight, bias = arguments().values()
    state, out = torch.zeros(BATCH, CHANNELS, TAPS, dtype=torch.float64), torch.empty(BATCH, CHANNELS).double()
    more = {"1.0": (True,), "1.1": (True, None), "1.2": (True, None, None), "1.6": (out, True, None, None)}[version]
    found = causal_conv1d_cuda.causal_conv1d_update(x[..., 0], state, weight, bias, *more)
    found = out if version == "1.6" else found
    assert_accurate("update", found, restated(x, weight, bias, True)[..., 0])


def test_gradients_of_states():
    """Called as mamba-ssm 2 calls the functions around the extension."""
    from causal_conv1d.cpp_functions import causal_conv1d_bwd_function, causal_conv1d_fwd_function

    x, weight, bias = arguments().values()
    before, place = normal(BATCH, CHANNELS, TAPS - 1), torch.empty(BATCH, CHANNELS, TAPS - 1).double()
    y = causal_conv1d_fwd_function(x, weight, bias, None, before, place, silu_activation=True)
    assert_accurate("out", y, restated(x, weight, bias, True, before))
    dout, dlast = normal(*x.shape), normal(*place.shape)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias, before)]
    exact = restated(*leaves[:3], True, leaves[3])
    expected = torch.autograd.grad((exact, leaves[0][..., -TAPS + 1 :]), leaves, (dout, dlast))
    found = causal_conv1d_bwd_function(x, weight, bias, dout, None, before, dlast, None, True, True)
    for name, got, want in zip(("x", "weight", "bias", "initial states"), found, expected, strict=True):
        assert_accurate(name, got, want, gradient=True)


def test_arguments_of_no_version():
    import causal_conv1d_cuda

    x, weight, bias = arguments().values()
    message = "causal_conv1d_fwd: expected the arguments of a published version, 4, 5, 7, 8 of them, got 6"
    with pytest.raises(TypeError, match=message):
        causal_conv1d_cuda.causal_conv1d_fwd(x, weight, bias, None, None, True)
