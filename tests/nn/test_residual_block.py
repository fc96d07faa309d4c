"""ResidualBlock and its parts AttentionGate and ConvUpsample: golden values, formulas, counts, edge cases."""

import copy
import pickle

import pytest
import torch
from torch import nn

from mtlkit.nn import (
    AttentionGate,
    ConvUpsample,
    DualPathAttention,
    MultiScaleFusion,
    ResidualBlock,
    SeparableConv,
)

TOLERANCE = 1e-5
LAYERS = {
    "hmsf": lambda **kw: MultiScaleFusion(8, **kw),
    "dual_path_attention": lambda **kw: DualPathAttention(8, **kw),
    "residual_block_same": lambda **kw: ResidualBlock(8, 8, **kw),
    "residual_block_proj_noatt": lambda **kw: ResidualBlock(8, 16, attention=False, **kw),
    "attention_gate": lambda **kw: AttentionGate(8, 3, 5, **kw),
}
INPUTS = {"attention_gate": ((2, 8, 6, 5), (2, 3, 6, 5))}


def inputs(name: str, **kw) -> list[torch.Tensor]:
    return [torch.randn(shape, **kw) for shape in INPUTS.get(name, ((2, 8, 6, 5),))]


def count(layer: nn.Module) -> int:
    """Counts like Keras, which includes the running statistics."""
    return sum(t.numel() for name, t in layer.state_dict().items() if not name.endswith("num_batches_tracked"))


@pytest.mark.parametrize("name", LAYERS)
def test_golden(keras_golden, dtype, name):
    layer, given, wanted = keras_golden(name, LAYERS[name](), dtype)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        y = layer(*(x.contiguous(memory_format=memory_format) for x in given.values()))
        assert (y - wanted["y"]).abs().max() <= TOLERANCE


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: ResidualBlock(1792, 1792, device="meta"), 20_179_030),
        (lambda: ResidualBlock(960, 960, device="meta"), 5_818_242),
        (lambda: ResidualBlock(336, 336, device="meta"), 726_051),
        (lambda: ResidualBlock(192, 192, device="meta"), 242_130),
        (lambda: ResidualBlock(144, 144, device="meta"), 138_423),
        (lambda: ResidualBlock(384 + 960, 384, attention=False, device="meta"), 1_819_779),
        (lambda: ResidualBlock(192 + 336, 192, attention=False, device="meta"), 406_323),
        (lambda: ResidualBlock(96 + 192, 96, attention=False, device="meta"), 110_067),
        (lambda: ResidualBlock(48 + 144, 48, attention=False, device="meta"), 34_443),
        (lambda: AttentionGate(960, 384, 192, device="meta"), 336_193),
        (lambda: AttentionGate(336, 192, 96, device="meta"), 71_329),
        (lambda: AttentionGate(192, 96, 48, device="meta"), 19_537),
        (lambda: AttentionGate(144, 48, 24, device="meta"), 6_313),
        (lambda: ConvUpsample(1792, 384, device="meta"), 6_193_536),
        (lambda: ConvUpsample(48, 24, device="meta"), 10_392),
        (lambda: MultiScaleFusion(48, device="meta"), 3 * (9 * 48 + 48**2 + 48) + 48 * 6 + 6 + 21 + 48**2 + 48),
    ],
)
def test_parameter_counts(make, expected):
    assert count(make()) == expected


# --- formulas --------------------------------------------------------------------------------------------------------


def test_residual_block_without_fusion_and_attention():
    block = ResidualBlock(8, 8, attention=False, multi_scale=False, dtype=torch.float64).eval()
    with torch.no_grad():
        block.bn1.running_mean.normal_()
        block.bn2.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 8, 6, 5, dtype=torch.float64)
    h = (block.conv1(x).relu() - block.bn1.running_mean[:, None, None]) / (1 + 1e-3) ** 0.5
    h = block.conv2(h) / (block.bn2.running_var[:, None, None] + 1e-3).sqrt()
    torch.testing.assert_close(block(x), (h + x).relu())
    assert {name.split(".")[0] for name in block.state_dict()} == {"conv1", "bn1", "conv2", "bn2"}


def test_normalisation_has_the_momentum_of_keras():
    block = ResidualBlock(8, 8).train()
    h = block.conv1(x := torch.randn(4, 8, 6, 5)).relu()
    block(x)
    torch.testing.assert_close(block.bn1.running_mean, 0.01 * h.mean((0, 2, 3)))


# --- module behaviour -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_reach_everything(name):
    layer = LAYERS[name](dtype=torch.float64)
    given = inputs(name, dtype=torch.float64, requires_grad=True)
    weights = dict(layer.named_parameters())
    for parameter, value in weights.items():
        if parameter.endswith("fc1.bias"):
            nn.init.ones_(value)  # activates hidden units

    def run(*values):
        return torch.func.functional_call(
            layer.eval(), dict(zip(weights, values[len(given) :], strict=True)), values[: len(given)]
        )

    tensors = [*given, *weights.values()]
    y = run(*tensors)
    direction = [torch.randn_like(t) for t in tensors]
    gradients = torch.autograd.grad(y.sin().sum(), tensors)
    assert all(g.abs().max() > 0 for g in gradients)
    step = 1e-6
    ahead, behind = (
        run(*(t + s * d for t, d in zip(tensors, direction, strict=True))).sin().sum() for s in (step, -step)
    )
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    torch.testing.assert_close((ahead - behind) / (2 * step), slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_copies_and_compilation(name):
    layer = LAYERS[name]().eval()
    given = inputs(name)
    y = layer(*given)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(*given).float(), y, atol=0.05, rtol=0.05)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(*given), y)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), y)
    assert "dim=8" in repr(layer)
    assert {p.device.type for p in LAYERS[name](device="meta").parameters()} == {"meta"}
    half = LAYERS[name](dtype=torch.bfloat16).eval()
    assert half(*(x.bfloat16() for x in given)).dtype == torch.bfloat16


@pytest.mark.parametrize("name", LAYERS)
def test_empty_batch_and_single_pixel(name):
    layer = LAYERS[name]().eval()
    given = inputs(name)
    assert layer(*(x[:0] for x in given)).shape[0] == 0
    assert layer(*(x[:1, :, :1, :1] for x in given)).isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiScaleFusion(7), "dim: expected at least 8 channels, got 7"),
        (lambda: DualPathAttention(0), "dim: expected a number above 0, got 0"),
        (lambda: ResidualBlock(0, 8), "in_dim"),
        (lambda: AttentionGate(8, 8, 0), "inter_dim"),
        (lambda: SeparableConv(8, 8, 0), "dilation"),
        (lambda: ConvUpsample(8, 0), "out_dim"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "layer", [MultiScaleFusion(8), DualPathAttention(8), ResidualBlock(8, 8), SeparableConv(8, 8), ConvUpsample(8, 8)]
)
def test_bad_input(layer):
    with pytest.raises(
        ValueError, match=r"x: expected shape \(B, 8, H, W\) with H and W at least 1, got \(1, 4, 4, 8\)"
    ):
        layer(torch.randn(1, 4, 4, 8))
    with pytest.raises(ValueError, match=r"got \(1, 8, 0, 4\)"):
        layer(torch.randn(1, 8, 0, 4))
    with pytest.raises(ValueError, match="4 dimensions"):
        layer(torch.randn(8, 4, 4))
    with pytest.raises(TypeError, match="x: expected float32"):
        layer(torch.ones(1, 8, 4, 4, dtype=torch.int64))
