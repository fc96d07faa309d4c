"""Every node of the domain "mtlkit" in ONNX Runtime, against the reference of its operator by the policy."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import mtlkit
from harness.onnx_nodes import node_session, run, run_node
from mtlkit.deploy import _nodes
from mtlkit.testing import InteractionInputs, InteractionShape, SelectiveScanShape, SS2DShape, assert_accurate

# batches of 0 and 5, one token, different heights and widths, states from 1 to 64, channels that do not fill a vector
SS2D = [
    SS2DShape(2, 8, 5, 7, 4, 2),
    SS2DShape(1, 19, 1, 1, 1, 1),
    SS2DShape(5, 33, 3, 11, 16, 3),
    SS2DShape(0, 8, 4, 4, 4, 2),
    SS2DShape(1, 5, 9, 2, 64, 5),
]


def exact(function, *tensors: Tensor | None, **options):
    """The reference in float64."""
    with mtlkit.use_backend("reference"), torch.no_grad():
        return function(*(None if t is None else t.double() for t in tensors), **options)


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def rows(x_dbl: Tensor) -> Tensor:
    return x_dbl.permute(0, 3, 4, 1, 2).contiguous()


def with_norm(shape: SS2DShape) -> tuple[list[Tensor], Tensor]:
    """The operator's arguments, with half of a wider image as the gate."""
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(shape.D, generator=generator), torch.randn(shape.D, generator=generator)
    wide = torch.randn(shape.B, shape.H, shape.W, 2 * shape.D + 3, generator=generator)
    return [*shape.inputs().values(), weight, bias, wide[..., shape.D + 3 :]], wide


@pytest.mark.parametrize("shape", SS2D, ids=str)
def test_ss2d(shape):
    u, x_dbl, *others = shape.inputs().values()
    (y,) = run_node("SS2D", [last(u), rows(x_dbl), *others])
    assert_accurate("y", y, last(exact(mtlkit.ops.ss2d, u, x_dbl, *others)))


@pytest.mark.parametrize("shape", SS2D, ids=str)
def test_ss2d_with_norm_and_gate(shape):
    inputs, wide = with_norm(shape)
    u, x_dbl, *others, z = inputs
    (y,) = run_node("SS2D", [last(u), rows(x_dbl).flatten(3), *others, wide], norm=1, eps=1e-3, z_offset=shape.D + 3)
    assert_accurate("y", y, exact(mtlkit.ops.ss2d_norm_gate, u, x_dbl, *others, z, eps=1e-3))


def test_ss2d_with_norm_alone():
    u, x_dbl, *others = SS2D[0].inputs().values()
    (y,) = run_node("SS2D", [last(u), rows(x_dbl), *others], norm=1)
    assert_accurate("y", y, exact(mtlkit.ops.ss2d_norm_gate, u, x_dbl, *others))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_give_the_same_result_again(threads):
    u, x_dbl, *others = SS2DShape(1, 40, 9, 13, 8, 3).inputs().values()
    inputs = [last(u), rows(x_dbl), *others]
    session = node_session("SS2D", inputs, 1, threads)
    first, second = run(session, inputs)[0], run(session, inputs)[0]
    assert torch.equal(first, second)
    assert_accurate("y", first, last(exact(mtlkit.ops.ss2d, u, x_dbl, *others)))


@pytest.mark.parametrize(
    "shape",
    [
        SelectiveScanShape(2, 8, 37, 4),
        SelectiveScanShape(1, 19, 1, 1),
        SelectiveScanShape(5, 6, 50, 16, 3),
        SelectiveScanShape(0, 4, 5, 2),
        SelectiveScanShape(2, 5, 9, 64, 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("whole", [True, False])
def test_selective_scan(shape, whole):
    inputs = list(shape.inputs().values())
    if not whole:
        inputs[1], inputs[5:] = inputs[1].abs(), [None, None, None]  # without softplus, steps must be positive
    y, state = run_node("SelectiveScan", inputs, 2, delta_softplus=int(whole))
    options = {"delta_softplus": whole, "return_last_state": True}
    expected = exact(mtlkit.ops.selective_scan, *inputs, **options)
    assert_accurate("y", y, expected[0])
    assert_accurate("last_state", state, expected[1])


@pytest.mark.parametrize(
    ("B", "D", "H", "W", "offset"), [(2, 8, 5, 7, 0), (1, 19, 1, 1, 4), (5, 3, 9, 2, 7), (0, 4, 3, 3, 0)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_dwconv_silu(B, D, H, W, offset, bias):
    wide, weight = torch.randn(B, H, W, offset + D + 2), torch.randn(D, 1, 3, 3)
    b = torch.randn(D) if bias else None
    (y,) = run_node("DwconvSilu", [wide, weight, b], offset=offset)
    x = wide[..., offset : offset + D].permute(0, 3, 1, 2)
    assert_accurate("y", y, last(exact(mtlkit.ops.dwconv_silu, x, weight, b)))


@pytest.mark.parametrize("shape", [(2, 5, 7, 24), (1, 1), (5, 33), (0, 8), (7,)], ids=str)
@pytest.mark.parametrize("whole", [True, False])
def test_norm_gate(shape, whole):
    x = torch.randn(shape)
    others = [torch.randn(shape[-1]), torch.randn(shape[-1]), torch.randn(shape)] if whole else [None] * 3
    (y,) = run_node("NormGate", [x, *others], eps=1e-3)
    assert_accurate("y", y, exact(mtlkit.ops.norm_gate, x, *others, eps=1e-3))


# --- levels -----------------------------------------------------------------------------------------------------------

LEVELS = [
    InteractionShape(2, 8, 5, 7, 16),
    InteractionShape(5, 19, 3, 11, 9, "alignment"),
    InteractionShape(1, 2, 1, 1, 3, "alignment", attention=True),
    InteractionShape(3, 24, 9, 4, 32, attention=True),
    InteractionShape(0, 4, 3, 3, 8),
]


def tensors_of(level: InteractionInputs, normaliser: Tensor | None = None) -> list[Tensor | None]:
    names = [name.strip("[]") for name in _nodes.NODES["TaskInteraction"][0].split()]
    named = {"x": level.x, "f": level.f, **level.tim._asdict(), **level.upa._asdict()}
    named |= {"attn": level.tim.attn_weight, "normaliser": normaliser}
    return [named[name] for name in names]


@pytest.mark.parametrize("shape", LEVELS, ids=str)
def test_task_interaction(shape):
    level, wide = shape.inputs(), shape.inputs(torch.float64)
    found = run_node("TaskInteraction", tensors_of(level), 6, tau=0.6, eps=1e-2)
    expected = exact_level(wide, signals=shape.signals, tau=0.6, eps=1e-2)
    check_level(found, expected)


def test_task_interaction_with_running_means():
    level, wide = LEVELS[0].inputs(), LEVELS[0].inputs(torch.float64)
    normaliser = torch.tensor([0.5, 2.0])
    found = run_node("TaskInteraction", tensors_of(level, normaliser), 6, tau=0.7, eps=1e-3)
    check_level(found, exact_level(wide, normaliser=normaliser.double()))


def exact_level(level: InteractionInputs, **options):
    with mtlkit.use_backend("reference"), torch.no_grad():
        out = mtlkit.ops.task_interaction(*level, **options)
        mu = mtlkit.ops.tim(level.x, level.f, level.tim, tau=options.get("tau", 0.7), eps=options.get("eps", 1e-3)).mu
    return out, mu


def check_level(found: list[Tensor], expected) -> None:
    out, mu = expected
    wanted = out.seg, out.clf, out.gates, torch.stack(tuple(out.stats), 1), out.enhanced_clf, mu
    for name, got, exact in zip(("seg", "clf", "gates", "signals", "enhanced", "mu"), found, wanted, strict=True):
        assert_accurate(name, got, exact)


@pytest.mark.parametrize("shape", LEVELS, ids=str)
def test_interaction_reduce(shape):
    level = shape.inputs()
    projection = [level.tim.proj_weight, level.tim.proj_bias, level.tim.attn_weight]
    mean, variance, energy, pooled = run_node("InteractionReduce", [level.x, *projection], 4)
    x = level.x.double()
    assert_accurate("mean", mean, x.mean((2, 3)))
    assert_accurate("variance", variance, (x - x.mean((2, 3), keepdim=True)).square().mean((2, 3)))
    down, across = x.diff(dim=2).abs().sum((1, 2, 3)), x.diff(dim=3).abs().sum((1, 2, 3))
    assert_accurate("energy", energy, (down + across) / x[0].numel() if len(x) else energy)
    assert_accurate("pooled", pooled, exact(mtlkit.ops.tim_pool, level.x, *projection))


def test_interaction_reduce_without_projection():
    x = torch.randn(2, 3, 4, 5)
    mean, *_, pooled = run_node("InteractionReduce", [x], 4)
    assert_accurate("mean", mean, x.double().mean((2, 3)))
    assert pooled.shape == (2, 0)


# --- sessions ---------------------------------------------------------------------------------------------------------


def call_of(kind: str, B: int, D: int, H: int, W: int) -> list[Tensor | None]:
    """Small inputs of a node."""
    N, R, L, order = 4, 2, H * W, []
    image, tokens, sequence, plane = (B, H, W, D), (B, L, D), (B, D, L), (B, D, H, W)
    scan = (4, D, R), (4, D), (4 * D, N), (4 * D,)
    if kind == "TaskInteraction":
        return tensors_of(InteractionShape(B, D, H, W, 16).inputs())
    if kind.startswith("Directional"):
        order = [torch.stack([torch.arange(L), torch.arange(L).flip(0)] * 2).int()]
    shapes = {
        "SS2D": (image, (B, H, W, 4, R + 2 * N), *scan),
        "DirectionalScan": (tokens, (B, L, 4, R + 2 * N), *scan),
        "DirectionalScans": (tokens, (B, L, 4, R + 2 * N), *scan),
        "CausalConv1d": (tokens, (D, 4), (D,)),
        "SelectiveScan": (sequence, sequence, (D, N), (B, N, L), (B, N, L)),
        "DwconvSilu": (image, (D, 1, 3, 3), (D,)),
        "NormGate": (image, (D,), (D,), image),
        "GatedResidual": (plane, plane, plane, (B, 3), (D,), plane),
        "Interleave": (plane,) * 4,
        "Shuffle": (image, image),
        "InteractionReduce": (plane, (8, D), (8,)),
    }
    generator = torch.Generator().manual_seed(B)
    return [*(torch.rand(shape, generator=generator) / 10 for shape in shapes[kind]), *order]


@pytest.mark.parametrize("kind", _nodes.NODES)
def test_sessions_run_at_once_on_any_threads(kind):
    calls = []
    for threads, sizes in ((1, (2, 24, 9, 13)), (2, (3, 40, 11, 6)), (3, (1, 33, 20, 17))):
        given = call_of(kind, *sizes)
        calls.append((node_session(kind, given, _nodes.NODES[kind][1], threads), given))
    alone = [run(*call) for call in calls]
    with ThreadPoolExecutor(len(calls)) as pool:
        together = [pool.submit(lambda call=call: [run(*call) for _ in range(10)]) for call in calls]
        for expected, future in zip(alone, together, strict=True):
            assert all(len(y) for y in expected)
            assert all(all(map(torch.equal, expected, found)) for found in future.result())


# --- wrong shapes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "shape", "words"),
    [
        (0, (2, 5, 7), r"u: expected shape \(B, H, W, D\), got \(2, 5, 7\)"),
        (0, (2, 5, 0, 8), r"u: expected shape \(B, H, W, D\) with sizes of at least 1, got \(2, 5, 0, 8\)"),
        (1, (2, 5, 7, 41), r"x_dbl: expected shape \(B, H, W, 4 \(R \+ 2 N\)\) = \(2, 5, 7, 40\), got \(2, 5, 7, 41\)"),
        (2, (4, 7, 2), r"dt_weight: expected shape \(4, D, R\) = \(4, 8, 2\), got \(4, 7, 2\)"),
        (3, (4, 9), r"dt_bias: expected shape \(4, D\) = \(4, 8\), got \(4, 9\)"),
        (4, (32, 0), r"A_logs: expected shape .* got \(32, 0\)"),
        (4, (32, 300), r"A_logs: expected shape .* = \(32, 256\), got \(32, 300\)"),
        (5, (31,), r"Ds: expected shape \(4 D,\) = \(32,\), got \(31,\)"),
        (
            8,
            (2, 5, 7, 7),
            r"z: expected shape \(B, H, W, C or more\) = \(2, 5, 7, 8\), got \(2, 5, 7, 7\)",
        ),
    ],
)
def test_wrong_shapes_of_ss2d(place, shape, words):
    inputs, wide = with_norm(SS2D[0])
    u, x_dbl, *others, _ = inputs
    given = [last(u), rows(x_dbl).flatten(3), *others, wide]
    given[place] = torch.randn(shape)
    with pytest.raises(Exception, match=words):
        run_node("SS2D", given, norm=1)


@pytest.mark.parametrize(
    ("kind", "shapes", "attributes", "words"),
    [
        ("DwconvSilu", [(1, 3, 3, 4), (5, 1, 3, 3)], {}, r"x: expected shape .* = \(1, 3, 3, 5\), got \(1, 3, 3, 4\)"),
        ("DwconvSilu", [(1, 3, 3, 4), (4, 3, 3)], {}, r"weight: expected shape \(D, 1, 3, 3\), got \(4, 3, 3\)"),
        ("DwconvSilu", [(1, 3, 3, 4), (4, 1, 3, 3)], {"offset": -1}, "offset: expected a number that is at least 0"),
        ("DwconvSilu", [(1, 3, 3, 4), (4, 1, 3, 3), (3,)], {}, r"bias: expected shape \(D,\) = \(4,\), got \(3,\)"),
        ("NormGate", [(2, 0)], {}, r"x: expected shape \(..., D\) with sizes of at least 1, got \(2, 0\)"),
        ("NormGate", [(2, 3), (4,)], {}, r"weight: expected shape \(D,\) = \(3,\), got \(4,\)"),
        ("NormGate", [(2, 3)], {"eps": -1.0}, "eps: expected a number that is at least 0"),
        ("SelectiveScan", [(1, 4, 5), (1, 4, 6), (4, 2), (1, 2, 5), (1, 2, 5)], {}, r"delta: .* got \(1, 4, 6\)"),
        (
            "SelectiveScan",
            [(1, 4, 5), (1, 4, 5), (4, 2), (1, 3, 2, 5), (1, 3, 2, 5)],
            {},
            "B: expected a number of groups",
        ),
        ("InteractionReduce", [(1, 4, 5, 5), (2, 3), (2,)], {}, r"weight: expected shape \(P, C\) = \(2, 4\)"),
        ("InteractionReduce", [(1, 4, 5, 5), (2, 4)], {}, r"bias: expected shape \(P,\) = \(2,\), got none"),
    ],
)
def test_wrong_shapes(kind, shapes, attributes, words):
    with pytest.raises(Exception, match=words):
        run_node(
            kind,
            [torch.randn(shape) for shape in shapes],
            {"SelectiveScan": 2, "InteractionReduce": 4}.get(kind, 1),
            **attributes,
        )


def test_wrong_shapes_of_a_level():
    given = tensors_of(LEVELS[1].inputs())
    names = [name.strip("[]") for name in _nodes.NODES["TaskInteraction"][0].split()]
    for name, tensor in zip(names, given, strict=True):
        if tensor is None or name == "x":
            continue
        wrong = [torch.randn(*t.shape[:-1], t.shape[-1] + 1) if t is tensor else t for t in given]
        with pytest.raises(Exception, match=r"\w+: expected shape \(.*\) = \(.*\), got \(.*\)"):
            run_node("TaskInteraction", wrong, 6)
