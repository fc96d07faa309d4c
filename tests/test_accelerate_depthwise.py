"""accelerate on depthwise convolutions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mtlkit

timm = pytest.importorskip("timm")


def _net(conv: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 1), conv, nn.BatchNorm2d(16)).eval()


def _conv(kernel: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(16, 16, kernel, groups=16, **options)


LAYERS = {
    "3 x 3": lambda: _conv(padding=1),
    "5 x 5 without bias": lambda: _conv(5, padding=2, bias=False),
    "7 x 7 same": lambda: _conv(7, padding="same"),
    "stride": lambda: _conv(3, stride=2, padding=1),
    "dilated": lambda: _conv(3, padding=4, dilation=4),
    "valid": lambda: _conv(3),
    "TensorFlow": lambda: timm.layers.Conv2dSame(16, 16, 5, stride=2, groups=16),
}
LEFT = {
    "too few channels": lambda: nn.Sequential(nn.Conv2d(16, 3, 1), nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 16, 1)),
    "window": lambda: _conv(9),
    "stride": lambda: _conv(3, stride=3),
    "stride and dilation": lambda: _conv(3, stride=2, dilation=2),
    "reflected": lambda: _conv(3, padding=1, padding_mode="reflect"),
    "groups": lambda: nn.Conv2d(16, 16, 3, groups=8),
    "one by three": lambda: nn.Conv2d(16, 16, (1, 3), groups=16),
    "own class": lambda: type("Other", (nn.Conv2d,), {})(16, 16, 3, groups=16),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_replaced_ones_compute_the_same(name, memory_format):
    theirs = _net(LAYERS[name]()).to(memory_format=memory_format)
    ours = copy.deepcopy(theirs)
    report = mtlkit.accelerate(ours)
    assert [entry.name for entry in report.replaced] == ["1"]
    assert report.replaced[0].error is not None
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for size in ((13, 14), (14, 13), (15, 15)):
        x = torch.randn(2, 3, *size).to(memory_format=memory_format)
        exact, got = theirs(x), ours(x)
        assert torch.allclose(got, exact, atol=1e-5)
        assert got.is_contiguous(memory_format=memory_format)
    results = []
    for net in (theirs, ours):
        loss = net(x).square().sum()
        results.append(torch.autograd.grad(loss, list(net.parameters())))
    for got, exact in zip(*results, strict=True):
        assert (got - exact).norm() <= 1e-5 * exact.norm()
    assert mtlkit.accelerate(ours).already == ("1",)
    assert mtlkit.restore(ours) == ["1"]
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", LEFT)
def test_others_are_not_looked_at(name):
    report = mtlkit.accelerate(nn.Sequential(LEFT[name]()))
    assert not report.replaced
    assert not report.left


def test_autocast_and_export_are_as_before():
    theirs = _net(_conv(5, padding=2))
    ours = mtlkit.accelerate(copy.deepcopy(theirs), report=False)
    x = torch.randn(2, 3, 9, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours[:2](x).dtype == theirs[:2](x).dtype == torch.bfloat16
    with torch.no_grad():
        program = torch.export.export(ours, (x,))
        assert torch.allclose(torch.func.vmap(ours)(x[:, None]), theirs(x)[:, None], atol=1e-5)
    assert not any("mtlkit" in str(node.target) for node in program.graph.nodes)
    assert torch.allclose(program.module()(x), theirs(x), atol=1e-5)


def test_a_compiled_network_calls_the_operator():
    ours = mtlkit.accelerate(nn.Sequential(_conv(3, padding=1), nn.ReLU()), report=False)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 16, 7, 6)
    assert torch.equal(compiled(x), F.relu(ours[0](x)))
