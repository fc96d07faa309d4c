"""The Mamba block in one to three directions, compared with mamba-ssm's functions on mtlkit's scan; decoding steps."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from networks import LOGITS_BOUND, assert_agrees, gradients
from torch import Tensor, nn

from harness.token_blocks import mamba_block
from mtlkit import compat
from mtlkit.nn import Mamba


@dataclass(frozen=True)
class Shape:
    """A sequence and the block that processes it; `reference`: whether the reference takes only seconds."""

    tokens: int
    channels: int
    bimamba_type: str | None = None
    nslices: int = 1
    reference: bool = True

    @property
    def updates(self) -> int:
        """State updates of a forward pass, over all directions."""
        return self.tokens * 2 * self.channels * 16 * {None: 1, "v2": 2, "v3": 3}[self.bimamba_type]


SHAPES = {
    "umamba_32x32": Shape(1024, 128),
    "vim_tiny_224": Shape(197, 192, "v2"),
    "segmamba_64": Shape(32768, 48, "v3", 32, reference=False),
}
GRADIENTS_BOUND = 1e-4


def published(layer: Mamba, x: Tensor) -> Tensor:
    """The published code: mamba-ssm's function for each direction, on copies in its order."""
    xz = torch.einsum("ec,blc->bel", layer.in_proj.weight, x)  # (B, 2 D, L)
    total = _inner(layer, "", xz)
    if layer.bimamba_type is not None:
        total = total + _inner(layer, "_b", xz.flip(-1)).flip(-1)
    if layer.bimamba_type == "v3":
        across = torch.stack(xz.chunk(layer.nslices, -1), -1).flatten(-2)
        y = _inner(layer, "_s", across).unflatten(-1, (-1, layer.nslices))
        total = total + y.transpose(2, 3).flatten(2)
    return layer.out_proj(total.transpose(1, 2))


def _inner(layer: Mamba, suffix: str, xz: Tensor) -> Tensor:
    conv, x_proj, dt = (getattr(layer, f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj"))
    A, D = -getattr(layer, f"A{suffix}_log").exp(), getattr(layer, f"D{suffix}")
    return compat.mamba_inner_fn_no_out_proj(
        xz, conv.weight, conv.bias, x_proj.weight, dt.weight, A, D=D, delta_bias=dt.bias, delta_softplus=True
    )


PROVIDERS: dict[str, Callable[[Mamba, Tensor], Tensor]] = {
    "mtlkit": lambda layer, x: layer(x),
    "mamba_inner_fn": published,
    "reference": mamba_block,
}


def block(shape: Shape) -> Mamba:
    torch.manual_seed(0)
    return Mamba(shape.channels, bimamba_type=shape.bimamba_type, nslices=shape.nslices).eval()  # pyright: ignore


def train(forward: Callable, layer: nn.Module, x: Tensor) -> Tensor:
    layer.zero_grad()
    y = forward(layer, x)
    y.square().mean().backward()
    return y.detach()


def infer(forward: Callable, layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return forward(layer, x)


@functools.lru_cache(maxsize=1)
def exact(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Input, output and gradients in float64; tests compare the block with its formula."""
    layer = block(SHAPES[name]).double()
    x = torch.randn(1, SHAPES[name].tokens, SHAPES[name].channels, generator=torch.Generator().manual_seed(1))
    return x, train(PROVIDERS["mtlkit"], layer, x.double()), gradients(layer)


CASES = [
    (name, direction, provider)
    for name, shape in SHAPES.items()
    for direction in ("inference", "forward_backward")
    for provider in PROVIDERS
    if provider != "reference" or (shape.reference and direction == "inference")
]


@pytest.mark.parametrize(("name", "direction", "provider"), CASES)
def test_mamba(name: str, direction: str, provider: str, measure: Callable) -> None:
    x, exact_output, exact_gradients = exact(name)
    layer, forward = block(SHAPES[name]), PROVIDERS[provider]

    def check(output: Tensor) -> tuple[float, float]:
        if direction == "forward_backward":
            assert_agrees("gradients", gradients(layer), exact_gradients, GRADIENTS_BOUND)
        return assert_agrees("output", output, exact_output, LOGITS_BOUND)

    measure(
        functools.partial(infer if direction == "inference" else train, forward, layer, x),
        check,
        unit=("updates", SHAPES[name].updates),
        op="mamba",
        shape=name,
        direction=direction,
        provider=provider,
    )
