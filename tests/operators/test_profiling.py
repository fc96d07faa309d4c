"""The calls that a profiler sees, their work, and how backends split them."""

from types import SimpleNamespace

import pytest
import torch

import mtlkit
from mtlkit import _native, ops
from mtlkit.operators import floors, ss2d_layer
from mtlkit.operators.interaction import gating
from mtlkit.operators.interaction.level import WHOLE
from mtlkit.operators.profiling import OPERATORS, Call, gpu_backend, plan_of, projection_in, scan_in, watching
from mtlkit.testing import INTERACTION_SHAPES, DirectionalScanShape, SelectiveScanShape, SS2DShape

SHAPE = SS2DShape(B=2, D=8, H=7, W=5, N=4, R=2)
H200 = floors.GPUS["h200"]


@pytest.fixture
def calls():
    """The calls that a profiler sees."""
    found: list[Call] = []

    def watch(call, run):
        found.append(call)
        return run()

    with watching(watch):
        yield found


def test_both_passes_are_told_with_their_tensors(calls):
    inputs = SHAPE.inputs(requires_grad=True)
    y = ops.ss2d(**inputs)
    y.sum().backward()
    if mtlkit._native.C is None:
        assert [call.operator for call in calls] == ["ss2d"]
        return
    assert [(call.operator, call.backend, call.backward) for call in calls] == [
        ("ss2d", "cpu", False),
        ("ss2d", "cpu", True),
    ]
    forward, backward = calls
    assert forward.inputs.u is not None
    assert backward.inputs.u.shape == forward.inputs.u.shape
    assert [g.shape for g in backward.grads] == [y.shape]
    given = sum(t.nbytes for t in inputs.values())
    assert forward.nbytes((y, torch.empty(1000))) == given + y.nbytes
    assert backward.nbytes([t.grad for t in inputs.values()]) == 2 * given + y.nbytes


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_plain_pytorch_is_told_once(calls, backend):
    with mtlkit.use_backend(backend):
        ops.norm_gate(torch.randn(2, 3, 8))
    assert [(call.operator, call.backend) for call in calls] == [("norm_gate", backend)]


@pytest.mark.skipif(_native.C is None, reason="the kernels are not built")
def test_fused_forms_are_told(calls):
    with torch.no_grad():
        mtlkit.nn.SS2D(d_model=16).eval()(torch.randn(1, 8, 6, 16))
    assert [call.operator for call in calls] == ["ss2d_layer"]
    assert scan_in(calls[0])[:2] == (8 * 6 * 4 * 32 * 16, 16)
    calls.clear()
    level = INTERACTION_SHAPES["busi_224_level3_batch8"]
    x, f, tim, upa = level.inputs(requires_grad=True)
    found = ops.task_interaction(x, f, tim, upa, signals=level.signals)
    assert [call.operator for call in calls] == ["interaction_reduce", "interaction_gating", "interaction_scale"]
    assert [projection_in(call) for call in calls] == [x.numel() * tim.proj_weight.shape[0], 0, 0]
    calls.clear()
    with torch.no_grad():
        ops.task_interaction(x, f, tim, upa, signals=level.signals)
    assert [call.operator for call in calls] == ["interaction_reduce", "interaction_gating", "interaction_scale"]
    calls.clear()
    (found.seg.sum() + found.clf.sum()).backward()
    assert [(call.operator, call.backward) for call in calls] == [
        ("interaction_scale", True),
        ("interaction_gating", True),
        ("interaction_reduce", True),
    ]


def test_everything_is_as_before():
    before = [(operator.backends, operator.plain_forms) for operator in OPERATORS.values()]
    layer, gates, levels = ss2d_layer.ss2d_layer, dict(gating.BACKENDS), dict(WHOLE)

    def fail(call, run):
        raise KeyError

    with pytest.raises(KeyError), watching(fail):
        ops.norm_gate(torch.randn(2, 8))
    assert [(operator.backends, operator.plain_forms) for operator in OPERATORS.values()] == before
    assert ss2d_layer.ss2d_layer is layer
    assert gates == gating.BACKENDS
    assert levels == WHOLE


def test_scans_are_counted(calls):
    flat = SelectiveScanShape(2, 8, 12, 4)
    with torch.no_grad():
        ops.ss2d(**SHAPE.inputs())
        ops.selective_scan(**flat.inputs())
        ops.norm_gate(torch.randn(2, 8))
    assert [scan_in(call) for call in calls] == [(SHAPE.updates, 4, 2), (2 * 8 * 12 * 4, 4, 0), None]


# --- plans ------------------------------------------------------------------------------------------------------------


def call_of(shape, name="ss2d", backward=False) -> Call:
    operator = OPERATORS[name]
    inputs = dict.fromkeys(operator.inputs._fields) | shape.inputs(device="meta")
    return Call(name, "cuda", operator.inputs(**inputs), backward=backward)


def test_cuda_plans_count_blocks(monkeypatch):
    plan = SimpleNamespace(images=2, pairs=2, channel_blocks=3, chunks=25, tiles=98, group_blocks=3, tile_tokens=16)
    native = SimpleNamespace(
        cuda=True,
        cuda_archs="90",
        cuda_ss2d_plan=lambda sizes, gpu, backward: plan,
        cuda_ss2d_tiling=lambda states, rank, gpu: SimpleNamespace(tokens=32),
        cuda_selective_scan_plan=lambda sizes, constant, gpu: plan,
    )
    monkeypatch.setattr(_native, "C", native)
    assert gpu_backend("ss2d", H200) == "cuda"
    assert gpu_backend("ss2d", floors.GPUS["a100"]) == "triton"  # the CUDA module has neither code nor PTX for it
    assert gpu_backend("interaction_reduce", H200) == "triton"
    assert gpu_backend("depthwise_conv2d", H200) == "torch"
    wanted = {"tile_tokens": 32, "tiles": 98, "chunks": 25, "blocks": 300, "blocks_per_sm": 3}
    assert plan_of(call_of(SHAPE), "cuda", H200) == wanted
    wanted = {"tile_tokens": 16, "tiles": 98, "chunks": 25, "blocks": 150, "blocks_per_sm": 2}
    assert plan_of(call_of(SelectiveScanShape(2, 8, 12, 4), "selective_scan"), "cuda", H200) == wanted
    assert plan_of(call_of(SHAPE), "cpu", None) == {}


@pytest.mark.parametrize("backward", [False, True])
def test_triton_plans_are_those_of_the_kernels(backward):
    kernels = pytest.importorskip("mtlkit.kernels.ss2d")
    shape = SS2DShape(B=1, D=96, H=56, W=56, N=16, R=3)
    call = call_of(shape, backward=backward)
    given = call.inputs
    launched = kernels._Plan("backward" if backward else "forward", given.u, given.x_dbl, given.dt_weight, given.A_logs)
    plan = plan_of(call, "triton", H200)
    assert (plan["chunks"], plan["tile_tokens"], (plan["blocks"],)) == (
        launched.chunks,
        launched.tiles.T,
        launched.grid,
    )


def test_operators_without_a_plan():
    call = Call("norm_gate", "cuda", (torch.empty(2, 8, device="meta"),))
    assert plan_of(call, "cuda", H200) == plan_of(call, "triton", H200) == {}


def test_directional_scans_are_planned_as_groups_of_channels(calls):
    shape = DirectionalScanShape(B=1, K=2, D=8, L=20, N=4, R=2)
    with torch.no_grad():
        ops.directional_scan(**shape.inputs(), order=ops.orders.both(20))
    (call,) = calls
    assert scan_in(call) == (shape.updates, 4, 2)
    plan = plan_of(call, "triton", H200)
    assert plan["blocks"] == shape.B * shape.K * plan["chunks"]
