"""The extensions of mamba-ssm and VMamba, called as in the published code."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.mamba import assert_same_with_gradients, inputs, restated_scan
from mtlkit import compat
from mtlkit.testing import assert_accurate

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
CORES = (
    "selective_scan_cuda_core",
    "selective_scan_cuda_nrow",
    "selective_scan_vmamba.selective_scan_cuda_core",
    "selective_scan_vmamba_pt202.selective_scan_cuda_core",
)


@pytest.fixture(autouse=True)
def _installed():
    assert compat.install_vmamba()
    yield
    compat.uninstall_vmamba()


class _Call(torch.autograd.Function):
    """Calls as VMamba calls its extensions, and as mamba-ssm calls its own without a gate."""

    @staticmethod
    def forward(ctx, name, u, delta, A, B, C, D, delta_bias, softplus, *more):
        ctx.module, ctx.softplus = importlib.import_module(name), softplus
        gate = (None,) if name == "selective_scan_cuda" else ()
        out, x, *rest = ctx.module.fwd(u, delta, A, B, C, D, *gate, delta_bias, softplus, *more)
        assert not rest
        ctx.save_for_backward(u, delta, A, B, C, D, delta_bias, x)
        return out

    @staticmethod
    def backward(ctx, dout):
        u, delta, A, B, C, D, delta_bias, x = ctx.saved_tensors
        if ctx.module.__name__ == "selective_scan_cuda":
            gradients = ctx.module.bwd(
                u, delta, A, B, C, D, None, delta_bias, dout.contiguous(), x, None, None, ctx.softplus, False
            )
        else:
            gradients = ctx.module.bwd(u, delta, A, B, C, D, delta_bias, dout.contiguous(), x, ctx.softplus, 1)
        return None, *gradients, *[None] * (len(ctx.needs_input_grad) - 8)


def call(name: str, leaves: dict, *more) -> Tensor:
    return _Call.apply(name, *(leaves.get(key) for key in NAMES), *more)


@pytest.mark.parametrize("name", ["selective_scan_cuda", "selective_scan_cuda_oflex", *CORES])
@pytest.mark.parametrize("optional", [True, False])
def test_as_called_by_vmamba(name, optional):
    arguments = inputs(2, 2, 3, 13, 4, ("grouped", "grouped"), ("D", "delta_bias") if optional else (), torch.float64)
    more = () if name == "selective_scan_cuda" else (1, False) if name.endswith("oflex") else (1,)
    assert_same_with_gradients(
        lambda leaves: call(name, leaves, True, *more),
        lambda leaves: restated_scan(**leaves, delta_softplus=True)[0],
        arguments,
    )


def test_one_state_without_a_dimension():
    arguments = inputs(2, 2, 3, 13, 1, ("grouped", "grouped"), ("D", "delta_bias"), torch.float64)
    flat = arguments | {"A": arguments["A"][:, 0], "B": arguments["B"][:, :, 0], "C": arguments["C"][:, :, 0]}

    def exact(leaves):
        rows = {"A": leaves["A"][:, None], "B": leaves["B"][:, :, None], "C": leaves["C"][:, :, None]}
        return restated_scan(**leaves | rows, delta_softplus=True)[0]

    assert_same_with_gradients(lambda leaves: call("selective_scan_cuda_ndstate", leaves, True, 1), exact, flat)


def test_time_steps_of_several_channels():
    """In VMamba's version, adjacent channels may share time steps."""
    arguments = inputs(2, 2, 3, 13, 4, ("grouped", "grouped"), ("D", "delta_bias"), torch.float64)
    arguments |= {"delta": arguments["delta"][:, :2], "delta_bias": arguments["delta_bias"][:2]}

    def exact(leaves):
        each = {name: leaves[name].repeat_interleave(3, dim) for name, dim in (("delta", 1), ("delta_bias", 0))}
        return restated_scan(**leaves | each, delta_softplus=True)[0]

    assert_same_with_gradients(
        lambda leaves: call("selective_scan_cuda_oflex", leaves, True, 1, True), exact, arguments
    )


@pytest.mark.parametrize("oflex", [True, False])
def test_the_output_is_widened_if_asked(oflex):
    exact = inputs(1, 2, 3, 13, 4, ("grouped", "grouped"), ("D",), torch.float16)
    leaves = {name: t.half().requires_grad_() for name, t in exact.items()}
    out = call("selective_scan_cuda_oflex", leaves, False, 1, oflex)
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


# --- mamba-ssm's extension, called as by mamba-ssm --------------------------------------------------------------------


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, delta_bias):
        import selective_scan_cuda

        out, x, gated = selective_scan_cuda.fwd(u, delta, A, B, C, D, z, delta_bias, True)
        ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, x, out)
        return gated

    @staticmethod
    def backward(ctx, dout):
        import selective_scan_cuda

        *tensors, x, out = ctx.saved_tensors
        dxz = torch.full_like(torch.cat((tensors[0], tensors[6]), 1), torch.nan)
        *gradients, dz, gated = selective_scan_cuda.bwd(*tensors, dout, x, out, dxz.chunk(2, 1)[1], True, True)
        assert torch.equal(dz, dxz.chunk(2, 1)[1])  # written into the caller's memory
        assert_accurate("gated output", gated, out * F.silu(tensors[6]))
        return *gradients[:6], dz, gradients[6]


@pytest.mark.parametrize("kinds", [("constant", "constant"), ("constant", "grouped"), ("grouped", "grouped")])
def test_gate_as_called_by_mamba_ssm(kinds):
    arguments = inputs(2, 1, 5, 13, 4, kinds, ("D", "z", "delta_bias"), torch.float64)
    assert_same_with_gradients(
        lambda leaves: _Gated.apply(*(leaves[name] for name in (*NAMES[:6], "z", "delta_bias"))),
        lambda leaves: restated_scan(**leaves, delta_softplus=True)[0],
        arguments,
    )


def test_complex_states_are_refused():
    import selective_scan_cuda

    u, A = torch.rand(1, 2, 3), torch.rand(2, 4, dtype=torch.complex64)
    with pytest.raises(TypeError, match="complex state spaces are not supported"):
        selective_scan_cuda.fwd(u, u, A, torch.rand(1, 1, 4, 3), torch.rand(1, 1, 4, 3), None, None, None, True)
