"""The Triton kernels of the two passes of task interaction, interpreted, against the reference in float64."""

import pytest
import torch
from torch import Tensor

import mtlkit
from mtlkit.kernels import interaction as kernels
from mtlkit.kernels.interaction import _reduce_bwd, reduce, scale
from mtlkit.operators.interaction.reduce import reduce_reference, reduce_torch
from mtlkit.ops import TIMParameters, UPAParameters
from mtlkit.testing import InteractionShape, assert_accurate

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NAMES = ("x", "weight", "bias", "attn")
SUMS = ("mean", "variance", "energy", "pooled")
# (B, C, H, W, P): one or several kernels backward, partly filled tiles and blocks, lines of pixels, single pixels
SMALL, WIDE, DEEP, LONG, PIXEL = (
    (2, 6, 5, 4, 3),
    (1, 96, 9, 8, 48),
    (2, 150, 7, 5, 75),
    (1, 20, 3, 11, 150),
    (3, 5, 1, 1, 2),
)
CASES = [
    *((shape, torch.float32, *form) for shape in (SMALL, DEEP) for form in ((False, False), (True, True))),
    *((shape, torch.float32, False, True) for shape in (WIDE, LONG, PIXEL)),
    *((LONG, torch.float32, True, False), (PIXEL, torch.float32, True, True)),
    *((shape, dtype, False, True) for shape in (SMALL, WIDE, DEEP) for dtype in DTYPES[1:]),
    ((1, 48, 6, 7, 24), torch.bfloat16, False, True),
    *((SMALL, dtype, True, False) for dtype in DTYPES[1:]),
]


def inputs(shape: tuple[int, ...], dtype: torch.dtype, attention: bool, memory_format=torch.contiguous_format):
    B, C, H, W, P = shape
    x = torch.randn(B, C, H, W) + torch.randn(B, C, 1, 1)
    given = {
        "x": x.to(dtype).contiguous(memory_format=memory_format),
        "weight": (torch.randn(P, C) * C**-0.5).to(dtype),
        "bias": (0.3 * torch.randn(P)).to(dtype),
        "attn": (torch.randn(C) * C**-0.5).to(dtype) if attention else None,
    }
    sums = {
        "mean": torch.randn(B, C),
        "variance": torch.randn(B, C),
        "energy": torch.randn(B),
        "pooled": torch.randn(B, P),
    }
    return given, sums, torch.randn(B, C), torch.randn(B, C, H, W).to(dtype)


def plain(
    given: dict, cotangents: dict, factors: Tensor, dy: Tensor, energy: bool, dtype: torch.dtype
) -> dict[str, Tensor]:
    """PyTorch's result: sums, scaled map, and the gradient of everything, in float64 or in a 16-bit dtype."""
    exact = dtype == torch.float64
    leaves = {k: None if t is None else t.detach().to(dtype).requires_grad_() for k, t in given.items()}
    reduce = reduce_reference if exact else reduce_torch
    reduced = reduce(*leaves.values(), energy, torch.float64 if exact else torch.float32)
    scale = factors.to(torch.float64 if exact else torch.float32).requires_grad_()
    y = (leaves["x"] * scale[:, :, None, None]).to(dtype)
    found = {name: getattr(reduced, name) for name in SUMS if energy or name != "energy"}
    loss = (y * dy.to(dtype)).sum() + sum(
        (found[name] * cotangents[name].to(found[name].dtype)).sum() for name in found
    )
    loss.backward()
    gradients = {f"d{name}": None if t is None else t.grad for name, t in leaves.items()}
    return found | {"y": y} | gradients | {"dfactors": scale.grad}


def fused(
    given: dict, cotangents: dict, factors: Tensor, dy: Tensor, energy: bool, save: bool = True
) -> dict[str, Tensor]:
    mean, variance, energies, pooled, softmax, signs = kernels.reduce_forward(*given.values(), energy, save)
    found = {"mean": mean, "variance": variance, "energy": energies, "pooled": pooled}
    if not energy:
        assert energies.numel() == 0
        del found["energy"]
    upstream = [cotangents[name] if energy or name != "energy" else None for name in SUMS]
    gradients = kernels.reduce_backward(*given.values(), mean, pooled, softmax, signs, *upstream, dy, factors)
    named = {f"d{name}": gradient for name, gradient in zip(NAMES, gradients, strict=True)}
    scaled = {"y": kernels.scale_forward(given["x"], factors), "dfactors": kernels.scale_backward(dy, given["x"])}
    return found | named | scaled


def assert_right(given, cotangents, factors, dy, energy) -> None:
    exact = plain(given, cotangents, factors, dy, energy, torch.float64)
    dtype = given["x"].dtype
    rough = plain(given, cotangents, factors, dy, energy, dtype) if dtype != torch.float32 else {}
    got = fused(given, cotangents, factors, dy, energy)
    assert got.keys() == exact.keys()
    for name, value in exact.items():
        if value is None:
            assert got[name] is None
            continue
        gradient = name.startswith("d")
        assert got[name].dtype == (dtype if name in ("y", "dx") else torch.float32)
        if dtype == torch.float32:
            assert_accurate(name, got[name], value, gradient=gradient)
        else:  # sums and gradients of parameters are float32 here, 16-bit in plain PyTorch
            assert_accurate(name, got[name].to(dtype), value, rough[name].to(dtype), gradient=gradient)


@pytest.mark.parametrize(("shape", "dtype", "attention", "energy"), CASES, ids=str)
def test_against_the_reference(shape, dtype, attention, energy):
    memory_format = torch.channels_last if energy else torch.contiguous_format
    assert_right(*inputs(shape, dtype, attention, memory_format), energy)


@pytest.mark.parametrize(("processors", "pixels"), [(1, 64), (132, 32)])
@pytest.mark.parametrize(("dtype", "energy"), [(torch.float32, True), (torch.bfloat16, False)], ids=str)
def test_tiles_decide_the_speed_alone(monkeypatch, processors, pixels, dtype, energy):
    """Planned for one processor and for many, with a pixel beyond a tile, and a projection with a 256-row block."""
    monkeypatch.setattr(reduce, "processors", lambda tensor: processors)
    monkeypatch.setattr(scale, "processors", lambda tensor: processors)
    arguments = inputs((2, 20, 5, 13, 130), dtype, False)
    assert reduce.pixels_of(arguments[0]["x"]) == pixels
    assert_right(*arguments, energy)


@pytest.mark.parametrize("attention", [False, True])
def test_views(attention):
    given, cotangents, factors, dy = inputs((2, 9, 6, 8, 4), torch.float32, attention)
    wide = torch.randn(2, 18, 6, 16)
    given["weight"] = given["weight"].t().contiguous().t()
    for x in (wide[:, ::2, :, :8], wide[:, :9, :, ::2], wide[:1, :9, :, :8].expand(2, -1, -1, -1), wide[:, 9:, :, :8]):
        assert_right(given | {"x": x}, cotangents, factors, dy.contiguous(memory_format=torch.channels_last), True)


def test_without_projection():
    x = torch.randn(2, 40, 9, 10) + 3
    mean, variance, energy, pooled, softmax, signs = kernels.reduce_forward(x, None, None, None, False, True)
    torch.testing.assert_close(mean, x.mean((2, 3)))
    torch.testing.assert_close(variance, x.var((2, 3), correction=0))
    assert [t.numel() for t in (energy, pooled, softmax, signs)] == [0, 0, 0, 0]
    dvariance = torch.randn(2, 40)
    dx, *others = kernels.reduce_backward(
        x, None, None, None, mean, pooled, softmax, signs, None, dvariance, None, None
    )
    assert others == [None, None, None]
    centred = x - x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(dx, centred * (dvariance * 2 / 90)[:, :, None, None])


@pytest.mark.parametrize("channels", [12, 140])
def test_gradients_that_are_not_wanted(channels):
    given, cotangents, factors, dy = inputs((2, channels, 7, 6, 5 * channels // 12), torch.float32, False)
    mean, _, _, pooled, softmax, signs = kernels.reduce_forward(*given.values(), False, True)
    whole = fused(given, cotangents, factors, dy, False)
    kept = (mean, pooled, softmax)
    only = kernels.reduce_backward(
        *given.values(), *kept, signs, None, None, None, cotangents["pooled"], map_wanted=False
    )
    assert only[0] is None
    for name, gradient in zip(NAMES[1:3], only[1:3], strict=True):
        assert torch.equal(gradient, whole[f"d{name}"])
    other = fused(given, cotangents, factors, dy, False, save=False)  # recomputes the signs
    assert all(torch.equal(whole[name], other[name]) for name in whole if whole[name] is not None)


def test_chunks_and_shares_of_many_tiles(monkeypatch):
    for module in (reduce, _reduce_bwd, scale):
        monkeypatch.setattr(module, "processors", lambda x: 1)
    for shape in ((2, 7, 13, 15, 5), (2, 130, 9, 8, 65)):
        assert_right(*inputs(shape, torch.float32, False), True)


def test_variance_beside_a_large_mean():
    x = (1e4 + 1e-2 * torch.randn(2, 3, 40, 40, dtype=torch.float64)).float()
    _, variance, *_ = kernels.reduce_forward(x, None, None, None, False, False)
    exact = x.double().var((2, 3), correction=0)
    assert ((variance - exact) / exact).abs().max() < 1e-3


def test_energy_of_a_constant_map_is_0():
    x = torch.full((2, 6, 9, 8), 3.7)
    energy = kernels.reduce_forward(x, None, None, None, True, False)[2]
    assert energy.tolist() == [0, 0]
    mean = x.mean((2, 3))
    empty = torch.empty(2, 0)
    dx, *_ = kernels.reduce_backward(x, None, None, None, mean, empty, empty, empty, None, None, torch.ones(2), None)
    assert not dx.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 33])
def test_what_is_not_finite_propagates(value, place):
    given, *_ = inputs((2, 6, 9, 8, 4), torch.float32, True)
    given["x"][0, 2].view(-1)[place] = value
    mean, variance, energy, pooled, *_ = kernels.reduce_forward(*given.values(), True, False)
    exact = reduce_reference(*given.values(), True, torch.float32)
    for name, got in (("mean", mean), ("variance", variance), ("energy", energy), ("pooled", pooled)):
        torch.testing.assert_close(got, getattr(exact, name), equal_nan=True)


@pytest.mark.parametrize("channels", [6, 70])
@pytest.mark.parametrize(("signals", "attention"), [("variance", False), ("alignment", False), ("alignment", True)])
def test_operator_on_these_kernels(channels, signals, attention):
    level = InteractionShape(2, channels, 5, 6, 10, signals, attention).inputs(requires_grad=True)

    def run(backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
        given = [level.x, level.f, *level.tim, *level.upa]
        leaves = [None if t is None else t.detach().to(dtype).requires_grad_(t.requires_grad) for t in given]
        tim, upa = TIMParameters(*leaves[2:17]), UPAParameters(*leaves[17:])
        with mtlkit.use_backend(backend):
            out = mtlkit.ops.task_interaction(*leaves[:2], tim, upa, signals=signals)
        ((out.seg * out.seg.detach().sin()).sum() + (out.clf * 1.5).sum() + out.gates[:, 0].sum()).backward()
        fields = ("x", "f", *TIMParameters._fields, *UPAParameters._fields)
        found = {name: t.grad for name, t in zip(fields, leaves, strict=True) if t is not None and t.requires_grad}
        return found | {"seg": out.seg, "clf": out.clf, "gates": out.gates}

    exact, got = run("reference", torch.float64), run("triton", torch.float32)
    for name, value in exact.items():
        assert_accurate(name, got[name], value, gradient=name not in ("seg", "clf", "gates"))


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_a_projection_of_exactly_0_has_no_gradient(dtype, attention):
    """As for PyTorch's ReLU at 0."""
    given, cotangents, factors, dy = inputs(SMALL, dtype, attention)
    given["weight"].zero_()
    given["bias"].zero_()
    got = fused(given, cotangents, factors, dy, False)
    assert not got["dweight"].any()
    assert not got["dbias"].any()


def test_repeats_bit_by_bit():
    arguments = inputs((2, 70, 9, 8, 70), torch.float32, True)
    first, second = fused(*arguments, True), fused(*arguments, True)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_empty_batch():
    given, cotangents, factors, dy = inputs((0, 6, 5, 4, 3), torch.float32, False)
    got = fused(given, cotangents, factors, dy, False)
    assert got["y"].shape == (0, 6, 5, 4)
    assert got["dfactors"].shape == (0, 6)
    assert not got["dweight"].any()


def test_float64_is_refused():
    given, *_ = inputs((1, 6, 5, 4, 3), torch.float64, False)
    with pytest.raises(TypeError, match="task_interaction: the triton backend expects float32, bfloat16 or float16"):
        kernels.reduce_forward(*given.values(), False, False)
