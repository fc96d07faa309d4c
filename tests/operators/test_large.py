"""Tensors with offsets beyond 2^31 elements, by the CPU kernels."""

import pytest
import torch
from torch import Tensor

from harness.calls import (
    Call,
    assert_same,
    causal_conv_call,
    conv_call,
    depthwise_call,
    directional_call,
    level_call,
    norm_call,
    scan_call,
    ss2d_call,
)
from harness.layouts import NCHW, far_apart
from mtlkit.testing import DirectionalScanShape, InteractionShape, SelectiveScanShape, SS2DShape, relative_error


def far_pixels(t: Tensor) -> Tensor:
    """Images that are far apart in memory, channels last."""
    return far_apart(t.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def far_tokens(t: Tensor) -> Tensor:
    """Sequences that are far apart in memory, channels last."""
    return far_apart(t.transpose(-1, -2)).transpose(-1, -2)


FAR = {
    "ss2d": (ss2d_call(SS2DShape(2, 20, 3, 12, 16, 2), torch.float16), {"u": far_pixels, "x_dbl": far_apart}),
    "ss2d, channels first": (ss2d_call(SS2DShape(2, 5, 3, 4, 4, 2), place=NCHW), {"u": far_apart}),
    "selective_scan": (
        scan_call(SelectiveScanShape(2, 20, 36, 16), torch.float16),
        dict.fromkeys(("u", "delta", "B", "C", "z"), far_apart),
    ),
    "directional_scan": (
        directional_call(DirectionalScanShape(2, 3, 20, 36, 16, 2, own=True, state=True), torch.float16),
        {"u": far_tokens, "x_dbl": far_apart, "initial_state": far_apart},
    ),
    "norm_gate": (norm_call((2, 3, 37), torch.float16), dict.fromkeys("xz", far_apart)),
    "depthwise_conv2d": (depthwise_call((2, 19, 4, 5), 5, torch.float16, stride=2), {"x": far_pixels}),
    "dwconv_silu": (conv_call((2, 19, 4, 5), torch.float16), {"x": far_pixels}),
    "dwconv_silu, channels first": (conv_call((2, 5, 4, 5), place=NCHW), {"x": far_apart}),
    "causal_conv1d": (
        causal_conv_call((2, 19, 40), dtype=torch.float16),
        {"x": far_tokens, "initial_states": far_apart},
    ),
    "causal_conv1d, channels first": (causal_conv_call((2, 5, 70)), {"x": far_apart}),
    "task_interaction": (level_call(InteractionShape(2, 6, 5, 4, 12), torch.float16), {"x": far_apart}),
}


@pytest.mark.parametrize("name", FAR)
def test_images_far_apart(name):
    """Also for the gradient of the output."""
    call, places = FAR[name]
    place = next(iter(places.values()))
    assert_same(call.placed(**places).run(place=place), call.run(place=place))


# --- as many elements in outputs and gradients; about 5 GB each -------------------------------------------------------

IMAGES = 2**10 + 1  # of 2^21 elements, in 16 bits


def many(call: Call, *batched: str) -> dict[str, Tensor]:
    """The arguments for IMAGES equal images, which share memory."""
    leaves = call.leaves()
    return {
        n: t.detach().expand(IMAGES, *t.shape[1:]).requires_grad_() if n in batched else t for n, t in leaves.items()
    }


def assert_all_alike(got: Tensor, one: Tensor) -> None:
    """Checks that all images of a result are bitwise equal, and equal to a single image up to the order of sums."""
    assert got.numel() > 2**31
    for image in got:
        assert torch.equal(image, got[0])
    assert relative_error(got[0], one[0]) < 2.0**-8


LARGE = {
    "ss2d": (ss2d_call(SS2DShape(1, 2048, 32, 32, 1, 1), torch.bfloat16), ("u", "x_dbl")),
    "norm_gate": (norm_call((1, 1024, 2048), torch.bfloat16, without=("z",)), ("x",)),
    "dwconv_silu": (conv_call((1, 2048, 32, 32), torch.bfloat16), ("x",)),
    "task_interaction": (level_call(InteractionShape(1, 2048, 32, 32, 4, "alignment"), torch.bfloat16), ("x", "f")),
    "selective_scan": (
        scan_call(SelectiveScanShape(1, 2048, 1024, 1), torch.bfloat16),
        ("u", "delta", "B", "C", "z"),
    ),
}


@pytest.mark.large
@pytest.mark.parametrize("name", LARGE)
def test_large_outputs(name):
    call, batched = LARGE[name]
    with torch.no_grad():
        one = call.function(**call.leaves())
        assert_all_alike(*(next(iter(found.values())) for found in (call.function(**many(call, *batched)), one)))


@pytest.mark.large
@pytest.mark.parametrize("name", [name for name in LARGE if name != "selective_scan"])  # has two such gradients
def test_large_gradients(name):
    """The gradient of the first output, whose memory is freed first."""
    call, batched = LARGE[name]
    first = next(iter(call.inputs))

    def gradient(leaves: dict[str, Tensor]) -> Tensor:
        output = next(iter(call.function(**leaves).values()))
        output.untyped_storage().resize_(0)
        weights = torch.ones((), dtype=output.dtype).expand(output.shape)
        return torch.autograd.grad(output, leaves[first], weights)[0]

    assert_all_alike(gradient(many(call, *batched)), gradient(call.leaves()))
