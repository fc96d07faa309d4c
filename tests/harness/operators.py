"""Descriptions of the operators for the test matrix: shapes, layouts, and the differences between operators.

A case has the same values in every dtype and layout, so that one run of the reference is enough.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.calls import (
    Call,
    causal_conv_call,
    conv_call,
    depthwise_call,
    directional_call,
    level_call,
    norm_call,
    scan_call,
    ss2d_call,
)
from harness.cases import (
    CausalConvCase,
    ConvCase,
    DepthwiseCase,
    DirectionalCase,
    LevelCase,
    NormCase,
    Operator,
    ScanCase,
)
from harness.layouts import NCHW, NHWC, dense, inside, part, repeated, spread, swapped
from mtlkit.operators import samples
from mtlkit.testing import DirectionalScanShape, InteractionShape, SelectiveScanShape, SS2DShape

NAN, INF = float("nan"), float("inf")


def _same_format(name: str) -> Callable[[dict[str, Tensor], dict[str, Tensor]], None]:
    """Checks that the first result and the argument's gradient have the memory format of the argument."""

    def check(inputs: dict[str, Tensor], results: dict[str, Tensor]) -> None:
        x = inputs[name]
        for memory_format in (torch.contiguous_format, torch.channels_last):
            if x.is_contiguous(memory_format=memory_format):
                for t in (next(iter(results.values())), results[f"d{name}"]):
                    assert t.is_contiguous(memory_format=memory_format)

    return check


# --- ss2d -------------------------------------------------------------------------------------------------------------

_SS2D = samples.SS2D

SS2D = Operator(
    name="ss2d",
    call=ss2d_call,
    node_options=(torch.float32, True),
    shapes=_SS2D,
    small=(_SS2D[0],),
    dense={"channels last": {}},
    layouts={
        "channels first": {"u": NCHW},
        "slice of a wider pixel": {"u": inside(1, part(-1, 1, 26))},
        "every other column": {"u": spread(-1)},
        "transposed image": {"u": swapped},
        "x_dbl as a convolution leaves it": {"x_dbl": dense},
        "transposed parameters": {"dt_weight": swapped, "A_logs": swapped},
    },
    batched=("u", "x_dbl"),
    packed=(SS2DShape(2, 16, 2, 8, 16, 16), _SS2D[0]),
    by_level=_SS2D,
    threaded=_SS2D[:4],
    counts=(1, 2, 3, 4, 5, 8, 13),
    empty=(SS2DShape(0, 8, 5, 4, 16, 2),),
    gradcheck=(SS2DShape(1, 3, 3, 4, 2, 2),),
    opcheck=(SS2DShape(2, 5, 3, 4, 2, 1),),
    compiled=(tuple(SS2DShape(B, 8, H, W, 16, 3) for B, H, W in ((2, 5, 7), (3, 5, 7), (4, 6, 9))),),
    exact_compiled=True,
    mixed={"u": torch.bfloat16, "x_dbl": torch.bfloat16},
    spoilt=dict.fromkeys(("u", "x_dbl", "dt_weight", "dt_bias", "A_logs", "Ds"), (NAN, INF, -INF)),
    result_layout=_same_format("u"),
)

# --- selective_scan ---------------------------------------------------------------------------------------------------

_SCAN = samples.SELECTIVE_SCAN


def scan_options(shape: SelectiveScanShape) -> tuple[ScanCase, ...]:
    """All combinations of mamba-ssm's arguments."""
    return tuple(
        ScanCase(shape, without, constant, softplus)
        for without in ((), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias"))
        for constant in ((), ("B",), ("C",), ("B", "C"))
        for softplus in (True, False)
    )


def _scan_call(case: ScanCase, dtype: torch.dtype) -> Call:
    return scan_call(case.shape, dtype, without=case.without, constant=case.constant, softplus=case.softplus)


SELECTIVE_SCAN = Operator(
    name="selective_scan",
    call=_scan_call,
    node_options=(True, True),
    shapes=tuple(map(ScanCase, _SCAN)),
    small=(ScanCase(_SCAN[0]),),
    dense={"tokens inside": {}},
    layouts={
        f"{layout} {name}": {name: place}
        for layout, place in {"channels inside": swapped, "every other token": spread(-1), "one": repeated(0)}.items()
        for name in ("u", "delta", "z", "B", "C")
    },
    other_numbers=tuple(f"one {name}" for name in ("u", "delta", "z", "B", "C")),
    exact_layouts=True,
    batched=("u", "delta", "B", "C", "z"),
    packed=(ScanCase(SelectiveScanShape(2, 32, 64, 16, G=2)), ScanCase(_SCAN[0]), ScanCase(_SCAN[7])),
    by_level=tuple(map(ScanCase, _SCAN)),
    threaded=(
        *map(ScanCase, _SCAN[:4]),
        *(
            ScanCase(SelectiveScanShape(1, 18, 40, 4), without, constant)
            for constant in (("B",), ("C",), ("B", "C"))
            for without in ((), ("D", "z", "delta_bias"))
        ),
    ),
    counts=(1, 2, 3, 5, 8),
    options=scan_options(SelectiveScanShape(2, 18, 40, 4, G=2)),
    wide=frozenset({"last"}),
    empty=(ScanCase(SelectiveScanShape(0, 6, 9, 4)),),
    gradcheck=tuple(ScanCase(SelectiveScanShape(1, 4, 5, 2, G=groups)) for groups in (0, 1, 2)),
    opcheck=(ScanCase(_SCAN[0]), ScanCase(_SCAN[0], without=("D", "z", "delta_bias"))),
    compiled=(tuple(ScanCase(SelectiveScanShape(B, 24, L, 16)) for B, L in ((2, 35), (3, 35), (4, 60))),),
    exact_compiled=True,
    mixed=dict.fromkeys(("u", "delta", "B", "C", "z"), torch.bfloat16),
    spoilt=dict.fromkeys(("u", "delta", "B", "C", "D", "z"), (NAN, INF)) | {"A": (NAN, -INF)},
)

# --- directional_scan -------------------------------------------------------------------------------------------------

_DIRECTIONS = tuple(DirectionalCase(*case) for case in samples.DIRECTIONAL_SCAN)


def _directional_call(case: DirectionalCase, dtype: torch.dtype) -> Call:
    return directional_call(case.shape, dtype, order=case.order, sequences=case.sequences, merge=case.merge)


def _channels_as_in(inputs: dict[str, Tensor], results: dict[str, Tensor]) -> None:
    """Checks that the output and the gradient of u have tokens or channels innermost, like u."""
    u = inputs["u"]
    for t in (results["y"], results["du"]):
        assert t.stride(-2 if u.stride(-2) == 1 else -1) == 1


DIRECTIONAL_SCAN = Operator(
    name="directional_scan",
    call=_directional_call,
    node_options=(True, torch.float32, 7, (0, 7, 1, 7, 6, 7, -1, -7), True),
    shapes=_DIRECTIONS,
    small=(_DIRECTIONS[0],),
    dense={"channels last": {}, "tokens inside": {"u": dense}},
    layouts={
        "slice of more channels": {"u": inside(-2, part(-1, 1, 26))},
        "every other token": {"u": spread(-1)},
        "x_dbl as a convolution leaves it": {"x_dbl": dense},
        "transposed parameters": {"dt_weight": swapped, "A_logs": swapped, "initial_state": swapped},
    },
    batched=("u", "x_dbl"),
    packed=(DirectionalCase(DirectionalScanShape(2, 2, 16, 16, 16, 16, state=True)), _DIRECTIONS[0]),
    by_level=_DIRECTIONS,
    threaded=_DIRECTIONS,
    counts=(1, 2, 3, 5, 13),
    wide=frozenset({"last"}),
    empty=(DirectionalCase(DirectionalScanShape(0, 2, 8, 20, 16, 2, state=True)),),
    gradcheck=(
        DirectionalCase(DirectionalScanShape(1, 3, 3, 7, 2, 2)),
        DirectionalCase(DirectionalScanShape(2, 2, 2, 5, 3, 1, own=True, state=True), "half", 2, merge=False),
    ),
    opcheck=(DirectionalCase(DirectionalScanShape(2, 2, 5, 7, 2, 1, state=True), "both"),),
    compiled=(
        tuple(
            DirectionalCase(DirectionalScanShape(B, 2, 8, L, 16, 6), "both", 9) for B, L in ((3, 35), (4, 35), (5, 54))
        ),
    ),
    exact_compiled=True,
    mixed={"u": torch.bfloat16, "x_dbl": torch.bfloat16},
    spoilt=dict.fromkeys(("u", "x_dbl", "dt_weight", "dt_bias", "A_logs", "Ds", "initial_state"), (NAN, INF, -INF)),
    result_layout=_channels_as_in,
)

# --- norm_gate --------------------------------------------------------------------------------------------------------

_ROWS = samples.NORM_GATE
_ABSENT = (("z",), ("weight",), ("bias",), ("weight", "bias"), ("weight", "bias", "z"))


def _is_contiguous(inputs: dict[str, Tensor], results: dict[str, Tensor]) -> None:
    assert results["y"].is_contiguous()


NORM_GATE = Operator(
    name="norm_gate",
    call=lambda case, dtype: norm_call(case.size, dtype, without=case.without),
    node_options=(1e-5,),
    shapes=(
        *map(NormCase, _ROWS),
        *(NormCase((3, 5, 41), absent) for absent in _ABSENT),
        NormCase((21, 19)),
        NormCase((21, 19), ("weight", "z")),
    ),
    small=(NormCase((20, 18)),),
    dense={
        "contiguous": dict.fromkeys("xz", dense),
        "half": dict.fromkeys("xz", part(-1, before=-1)),
        "channels first": dict.fromkeys("xz", inside(0)),
        "odd rows": dict.fromkeys("xz", spread(0)),
    },
    layouts={"repeated": {"x": repeated(0), "bias": repeated(0), "z": repeated(1)}},
    other_numbers=("repeated",),
    batched=("x", "z"),
    packed=(NormCase((6, 64)), NormCase((5, 41))),
    by_level=(NormCase((2, 9, 37)), NormCase((5, 64))),
    threaded=(NormCase((45, 20)), *(NormCase((45, 20), absent) for absent in _ABSENT)),
    counts=(1, 2, 3, 16, 64),
    same_by_count=("y", "dx", "dz"),
    repeated=(NormCase((300, 50)),),
    empty=(NormCase((0, 5)), NormCase((2, 0, 3, 7))),
    gradcheck=tuple(NormCase((3, 2, 5), absent) for absent in ((), ("z",), ("weight",), ("bias",))),
    opcheck=tuple(NormCase((2, 3, 5), absent) for absent in ((), ("bias",), ("weight", "z"))),
    compiled=(tuple(NormCase((B, 4, 6)) for B in (2, 3, 5)),),
    compiler="inductor",
    dynamic=False,
    mixed={"weight": torch.float16, "bias": torch.float64, "z": torch.bfloat16},
    spoilt=dict.fromkeys(("x", "weight", "bias", "z"), (NAN, INF, -INF)),
    spoilt_gradients="finite",  # whether a gradient is inf or NaN depends on how its formula is written
    result_layout=_is_contiguous,
)

# --- dwconv_silu ------------------------------------------------------------------------------------------------------

_MAPS = samples.DWCONV_SILU


def _channels_stay_inside(inputs: dict[str, Tensor], results: dict[str, Tensor]) -> None:
    x = inputs["x"]
    last = x.shape[1] > 1 and x.stride(1) == 1
    assert results["y"].is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


DWCONV_SILU = Operator(
    name="dwconv_silu",
    call=lambda case, dtype: conv_call(case.size, dtype, bias=case.bias),
    node_options=(),
    shapes=(*(ConvCase(size, bias=size[1] != 20) for size in _MAPS), ConvCase((2, 19, 5, 6))),
    small=(ConvCase((1, 18, 4, 5)),),
    dense={
        "contiguous": {"x": NCHW},
        "channels last": {"x": NHWC},
        "half": {"x": inside(1, part(-1, after=-1))},
        "sparse": {"x": spread(2, 3)},
    },
    batched=("x",),
    packed=(ConvCase((2, 16, 4, 16)), ConvCase((1, 18, 4, 5))),
    by_level=(ConvCase((2, 37, 6, 9)),),
    threaded=(ConvCase((1, 20, 9, 5)), ConvCase((1, 20, 9, 5), bias=False)),
    counts=(1, 2, 3, 16),
    same_by_count=("y", "dx", "dweight", "dbias"),
    repeated=(ConvCase((3, 50, 14, 9)),),
    empty=(ConvCase((0, 5, 3, 4)),),
    gradcheck=(ConvCase((2, 3, 4, 3)),),
    opcheck=(ConvCase((2, 5, 4, 3)), ConvCase((2, 5, 4, 3), bias=False)),
    compiled=(tuple(ConvCase((B, 6, 4, 5)) for B in (2, 3, 5)),),
    compiler="inductor",
    dynamic=False,
    mixed={"x": torch.bfloat16, "bias": torch.float64},
    spoilt=dict.fromkeys(("x", "weight", "bias"), (NAN, INF, -INF)),
    spoilt_gradients="all",
    result_layout=_channels_stay_inside,
)

# --- depthwise_conv2d -------------------------------------------------------------------------------------------------

_SILU = ("activation", "silu")
_WINDOWS = tuple(DepthwiseCase(*case) for case in samples.DEPTHWISE_CONV2D)

DEPTHWISE_CONV2D = Operator(
    name="depthwise_conv2d",
    call=lambda case, dtype: depthwise_call(case.size, case.kernel, dtype, bias=case.bias, **dict(case.options)),
    node_options=(1, (1, 1, 1, 1), 1, False),
    shapes=(*_WINDOWS, DepthwiseCase((2, 19, 5, 6))),
    small=(DepthwiseCase((1, 18, 4, 5), 5), DepthwiseCase((1, 18, 4, 5), 3, (("stride", 2),))),
    dense={
        "contiguous": {"x": NCHW},
        "channels last": {"x": NHWC},
        "half": {"x": inside(1, part(-1, after=-1))},
        "sparse": {"x": spread(2, 3)},
    },
    batched=("x",),
    packed=(DepthwiseCase((2, 16, 4, 16)), DepthwiseCase((1, 18, 4, 5), 5)),
    by_level=tuple(DepthwiseCase((2, 37, 6, 9), k, o) for k in (3, 5, 7) for o in ((), (("stride", 2), _SILU))),
    threaded=(
        DepthwiseCase((1, 20, 9, 5)),
        DepthwiseCase((1, 3, 70, 41), 5, (("stride", 2),), bias=False),
        DepthwiseCase((1, 3, 60, 41), 3, (("dilation", 2), _SILU)),
    ),
    counts=(1, 2, 3, 16),
    same_by_count=("y", "dx", "dweight", "dbias"),
    repeated=(DepthwiseCase((3, 50, 14, 9), 5),),
    empty=(DepthwiseCase((0, 5, 3, 4)),),
    gradcheck=(
        DepthwiseCase((2, 3, 4, 3), 3, (_SILU,)),
        DepthwiseCase((1, 2, 5, 4), 5, (("stride", 2),)),
        DepthwiseCase((1, 2, 5, 4), 3, (("dilation", 2),), bias=False),
    ),
    opcheck=(DepthwiseCase((2, 5, 4, 3)), DepthwiseCase((2, 5, 4, 3), 5, (("stride", 2), _SILU), bias=False)),
    compiled=(tuple(DepthwiseCase((B, 6, 4, 5), 5, (("stride", 2), _SILU)) for B in (2, 3, 5)),),
    compiler="inductor",
    dynamic=False,
    mixed={"x": torch.bfloat16, "bias": torch.float64},
    spoilt=dict.fromkeys(("x", "bias"), (NAN, INF, -INF)),
    spoilt_gradients="all",
    result_layout=_channels_stay_inside,
)

# --- causal_conv1d ----------------------------------------------------------------------------------------------------

_SEQUENCES = tuple(CausalConvCase(*case) for case in samples.CAUSAL_CONV1D)


def _channels_of_x_stay_inside(inputs: dict[str, Tensor], results: dict[str, Tensor]) -> None:
    x = inputs["x"]
    last = x.shape[1] > 1 and x.stride(1) == 1
    for t in (results["y"], results["last"]):
        assert (t.mT if last else t).is_contiguous()


CAUSAL_CONV1D = Operator(
    name="causal_conv1d",
    call=lambda case, dtype: causal_conv_call(
        case.size, case.width, dtype, without=case.without, activation=case.activation
    ),
    node_options=(True, True),
    shapes=_SEQUENCES,
    small=(CausalConvCase((2, 18, 21)),),
    dense={
        "contiguous": {"x": dense},
        "channels last": {"x": inside(1)},
        "half": {"x": inside(1, part(-1, after=-1))},
        "sparse": {"x": spread(2)},
    },
    batched=("x", "initial_states"),
    packed=(CausalConvCase((2, 16, 64)), CausalConvCase((1, 18, 21), 3)),
    by_level=(CausalConvCase((2, 37, 70)), CausalConvCase((2, 9, 33), 2, activation=None)),
    threaded=(CausalConvCase((1, 20, 150)), CausalConvCase((2, 5, 20), 3, ("bias", "initial_states"))),
    counts=(1, 2, 3, 16),
    same_by_count=("y", "last", "dx", "dinitial_states"),
    repeated=(CausalConvCase((3, 50, 126)),),
    options=tuple(
        CausalConvCase((2, 18, 21), width, without, activation)
        for width in (2, 3, 4)
        for without in ((), ("bias",), ("initial_states",), ("bias", "initial_states"))
        for activation in (None, "silu")
    ),
    empty=(CausalConvCase((0, 5, 3)),),
    gradcheck=(CausalConvCase((2, 3, 5)), CausalConvCase((1, 17, 2), 3, activation=None)),
    fast_gradcheck=True,
    opcheck=(CausalConvCase((2, 5, 7)), CausalConvCase((2, 5, 7), 3, ("bias", "initial_states"))),
    compiled=(tuple(CausalConvCase((B, 24, L)) for B, L in ((2, 35), (3, 35), (4, 60))),),
    exact_compiled=True,
    mixed={"x": torch.bfloat16, "bias": torch.float64, "initial_states": torch.bfloat16},
    spoilt=dict.fromkeys(("x", "weight", "bias", "initial_states"), (NAN, INF, -INF)),
    spoilt_gradients="all",
    result_layout=_channels_of_x_stay_inside,
)

# --- task_interaction -------------------------------------------------------------------------------------------------

_LEVELS = samples.TASK_INTERACTION
SIGNALS = samples.SIGNALS


def _level(size: tuple[int, ...], signals: str, attention: bool = False, enhanced: bool = False) -> LevelCase:
    return LevelCase(InteractionShape(*size, F=12, signals=signals, attention=attention), enhanced)


TASK_INTERACTION = Operator(
    name="task_interaction",
    call=lambda case, dtype: level_call(case.shape, dtype, enhanced=case.enhanced),
    node_options=None,
    shapes=tuple(
        _level(size, signals, bool(i % 2))
        for signals in SIGNALS
        for i, size in enumerate((*_LEVELS, (2, 19, 7, 21), (2, 19, 7, 21)))
    ),
    small=(_level((2, 18, 6, 5), "alignment"), _level((2, 18, 6, 5), "variance")),
    dense={"nchw": {"x": NCHW}, "channels last": {"x": NHWC}},
    layouts={
        "channels": {"x": part(1, before=-1)},
        "channels of channels last": {"x": inside(1, part(-1, before=-1))},
        "columns": {"x": spread(-1)},
        "swapped": {"x": swapped},
        "repeated": {"x": repeated(0)},
    },
    other_numbers=("repeated",),
    batched=("x", "f"),
    packed=(_level((2, 16, 4, 16), "alignment"), _level((2, 18, 6, 5), "variance", True)),
    by_level=tuple(
        _level(size, signals, attention)
        for signals, size in (("variance", (2, 37, 7, 11)), ("alignment", (2, 24, 10, 13)))
        for attention in (False, True)
    ),
    threaded=tuple(_level((3, 20, 23, 19), signals, attention) for signals in SIGNALS for attention in (False, True)),
    counts=(1, 2, 3, 16),
    repeated=tuple(_level((3, 40, 25, 17), "alignment", attention) for attention in (False, True)),
    empty=tuple(_level((0, 6, 4, 5), signals, enhanced=True) for signals in SIGNALS),
    gradcheck=tuple(
        _level((2, 5, 3, 4), signals, attention, True) for signals in SIGNALS for attention in (False, True)
    ),
    fast_gradcheck=True,
    wide=frozenset({"gates"}),
    compiled=tuple(tuple(_level((B, 6, 4, 5), signals) for B in (2, 3, 5)) for signals in SIGNALS),
    dynamic=False,
    result_layout=_same_format("x"),
)

OPERATORS = (
    SS2D,
    SELECTIVE_SCAN,
    DIRECTIONAL_SCAN,
    NORM_GATE,
    DEPTHWISE_CONV2D,
    DWCONV_SILU,
    CAUSAL_CONV1D,
    TASK_INTERACTION,
)

# --- cases for GPU kernels --------------------------------------------------------------------------------------------

_FORMATS = {"nhwc": NHWC, "nchw": NCHW}

# Every N with a specialised kernel, some others, and the largest; one pixel, one row, one column, one channel; channels
# at and next to a block's; pixels or tokens at and next to a tile's; B and C constant.
GPU_SS2D = replace(
    SS2D,
    shapes=(
        SS2DShape(1, 1, 1, 1, 16, 1),
        SS2DShape(2, 65, 1, 17, 1, 2),
        SS2DShape(1, 64, 16, 1, 2, 3),
        SS2DShape(1, 7, 3, 5, 3, 1),
        SS2DShape(1, 66, 4, 5, 4, 6),
        SS2DShape(1, 33, 4, 8, 8, 5),
        SS2DShape(1, 5, 3, 3, 11, 2),
        SS2DShape(2, 33, 5, 7, 16, 4),
        SS2DShape(1, 10, 6, 11, 17, 24),
        SS2DShape(1, 5, 3, 6, 64, 3),
        SS2DShape(1, 5, 3, 6, 100, 1),
        SS2DShape(1, 5, 2, 5, 256, 2),
    ),
    dense={name: {"u": place} for name, place in _FORMATS.items()},
)
GPU_SELECTIVE_SCAN = replace(
    SELECTIVE_SCAN,
    shapes=tuple(
        map(
            ScanCase,
            (
                SelectiveScanShape(1, 1, 1, 16),
                SelectiveScanShape(2, 65, 17, 1),
                SelectiveScanShape(1, 64, 16, 2),
                SelectiveScanShape(3, 18, 15, 3, G=3),
                SelectiveScanShape(1, 66, 20, 4, G=2),
                SelectiveScanShape(1, 33, 32, 8),
                SelectiveScanShape(2, 33, 35, 16),
                SelectiveScanShape(1, 12, 21, 16, G=12),
                SelectiveScanShape(1, 10, 33, 17),
                SelectiveScanShape(1, 5, 18, 64),
                SelectiveScanShape(1, 5, 18, 100),
                SelectiveScanShape(1, 5, 10, 256),
                SelectiveScanShape(2, 17, 34, 16, G=0),
                SelectiveScanShape(1, 5, 10, 200, G=0),
            ),
        )
    ),
    options=scan_options(SelectiveScanShape(2, 6, 19, 4, G=2)),
)
GPU_DIRECTIONAL_SCAN = replace(DIRECTIONAL_SCAN, shapes=_DIRECTIONS[:4])
# Every kernel at its limits: channels for 8 and for 32 lanes, and channels that no pack divides.
GPU_NORM_GATE = replace(
    NORM_GATE,
    call=lambda case, dtype: norm_call(case.size, dtype, parameters=torch.float32, without=case.without),
    shapes=(
        *(NormCase((rows, channels)) for rows, channels in ((1, 1), (3, 4), (35, 96), (33, 128), (9, 132), (8, 512))),
        *(NormCase((rows, channels)) for rows, channels in ((11, 516), (5, 1024), (3, 1028), (4, 37))),
        *(NormCase((10, 200), without) for without in (("z",), ("weight",), ("bias",), ("weight", "bias", "z"))),
    ),
    dense={"contiguous": {}},
    mixed={"weight": torch.float16, "z": torch.bfloat16},
)
GPU_DWCONV_SILU = replace(
    DWCONV_SILU,
    call=lambda case, dtype: conv_call(case.size, dtype, parameters=torch.float32, bias=case.bias),
    shapes=tuple(
        ConvCase(size, bias=size[1] != 36)
        for size in ((1, 1, 1, 1), (2, 3, 1, 5), (1, 34, 6, 1), (2, 1, 4, 9), (1, 32, 5, 33), (2, 36, 9, 13))
    ),
    dense={name: {"x": place} for name, place in _FORMATS.items()},
    mixed={"x": torch.bfloat16},
)
GPU_CAUSAL_CONV1D = replace(
    CAUSAL_CONV1D,
    call=lambda case, dtype: causal_conv_call(
        case.size, case.width, dtype, parameters=torch.float32, without=case.without, activation=case.activation
    ),
    shapes=_SEQUENCES[:-1],
    mixed={"x": torch.bfloat16, "initial_states": torch.float16},
)
GPU_TASK_INTERACTION = replace(
    TASK_INTERACTION,
    shapes=tuple(
        _level(size, signals, attention)
        for signals, attention in zip(SIGNALS, (True, False), strict=True)
        for size in ((2, 5, 1, 1), (1, 7, 13, 1), (2, 33, 5, 7), (2, 20, 9, 13))
    ),
    repeated=TASK_INTERACTION.repeated[:1],
)
GPU_OPERATORS = (
    GPU_SS2D,
    GPU_SELECTIVE_SCAN,
    GPU_DIRECTIONAL_SCAN,
    GPU_NORM_GATE,
    GPU_DWCONV_SILU,
    GPU_CAUSAL_CONV1D,
    GPU_TASK_INTERACTION,
)

# --- cases for Triton's interpreter, where a call of a scan takes half a second ---------------------------------------


def _tiny(operator: Operator, *cases: Any, **changes: Any) -> Operator:
    """Leaves out opcheck, which calls a scan ten times, unless a change sets its cases."""
    return replace(operator, shapes=cases, small=cases[:1], **{"opcheck": (), **changes})


INTERPRETED_OPERATORS = (
    _tiny(GPU_SS2D, SS2DShape(1, 3, 2, 3, 2, 1)),
    _tiny(
        GPU_SELECTIVE_SCAN,
        ScanCase(SelectiveScanShape(1, 3, 5, 2)),
        ScanCase(SelectiveScanShape(1, 4, 3, 1, G=2)),
        ScanCase(SelectiveScanShape(1, 2, 3, 3, G=0)),
        options=tuple(
            ScanCase(SelectiveScanShape(1, 2, 3, 2), without, constant, softplus)
            for without, softplus in (((), True), (("D", "z", "delta_bias"), False))
            for constant in ((), ("B",), ("C",), ("B", "C"))
        ),
    ),
    _tiny(
        GPU_DIRECTIONAL_SCAN,
        DirectionalCase(DirectionalScanShape(1, 2, 3, 7, 2, 1, state=True), "half", 2),
        DirectionalCase(DirectionalScanShape(2, 2, 2, 5, 3, 1, own=True), "own", merge=False),
    ),
    _tiny(GPU_NORM_GATE, NormCase((5, 7)), NormCase((2, 3, 33)), *(NormCase((4, 9), absent) for absent in _ABSENT)),
    _tiny(
        GPU_DWCONV_SILU,
        ConvCase((2, 3, 3, 4)),
        ConvCase((1, 17, 1, 2), bias=False),
        opcheck=(ConvCase((2, 3, 3, 4)),),
    ),
    _tiny(
        GPU_CAUSAL_CONV1D,
        CausalConvCase((2, 5, 7)),
        CausalConvCase((1, 17, 2), 3, ("bias", "initial_states"), None),
        options=tuple(CausalConvCase((2, 3, 4), width, without) for width in (2, 3) for without in ((), ("bias",))),
        opcheck=(CausalConvCase((2, 5, 7)),),
    ),
    _tiny(TASK_INTERACTION, _level((2, 5, 3, 4), "alignment", True), _level((1, 2, 1, 3), "variance")),
)
