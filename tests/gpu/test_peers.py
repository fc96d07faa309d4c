"""mamba-ssm and causal-conv1d, installed by the extra `peers`, compared with mtlkit on the same GPU."""

import pytest
import torch

import mtlkit
from mtlkit.testing import assert_accurate

pytestmark = pytest.mark.gpu


def gradients(function, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """The output of a function of tensors, and the gradient of each."""
    given = [x.detach().requires_grad_() for x in inputs]
    y = function(*given)
    generator = torch.Generator(y.device).manual_seed(1)
    y.backward(torch.randn(y.shape, generator=generator, device=y.device, dtype=y.dtype))
    return {"y": y.detach()} | {f"gradient {i}": x.grad for i, x in enumerate(given)}


def assert_peers(ours, peers, *inputs: torch.Tensor) -> None:
    """Compares both with the float64 reference; the peer's error bound is that of its own tests."""
    exact = gradients(ours, *(x.double() for x in inputs))
    found, theirs = gradients(ours, *inputs), gradients(peers, *inputs)
    for name, value in exact.items():
        assert_accurate(name, found[name], value, gradient=name != "y")
        torch.testing.assert_close(found[name], theirs[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("length", [1, 63, 1500])
def test_selective_scan(length, device):
    interface = pytest.importorskip("mamba_ssm.ops.selective_scan_interface")
    draw = torch.Generator(device).manual_seed(0)
    shapes = (2, 32, length), (2, 32, length), (2, 8, length), (2, 8, length), (32,), (2, 32, length)
    u, delta, B, C, D, z = (torch.randn(shape, generator=draw, device=device) for shape in shapes)
    A = -torch.rand(32, 8, generator=draw, device=device)
    inputs = u, delta, A, B, C, D, z

    def ours(*given: torch.Tensor) -> torch.Tensor:
        return mtlkit.selective_scan_fn(*given, None, True)

    assert_peers(ours, lambda *given: interface.selective_scan_fn(*given, None, True), *inputs)


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_causal_conv1d(width, activation, device):
    package = pytest.importorskip("causal_conv1d")
    draw = torch.Generator(device).manual_seed(0)
    inputs = [torch.randn(shape, generator=draw, device=device) for shape in ((2, 64, 130), (64, width), (64,))]

    def ours(*given: torch.Tensor) -> torch.Tensor:
        return mtlkit.ops.causal_conv1d(*given, activation=activation)

    assert_peers(ours, lambda *given: package.causal_conv1d_fn(*given, activation=activation), *inputs)
