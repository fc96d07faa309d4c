"""Calls of the operators, their inputs by shape and dtype, and the comparison of their results with the reference."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mtlkit
from harness.layouts import NCHW, NHWC, Place, kept
from mtlkit.operators.samples import FORWARD, visits
from mtlkit.operators.shapes import causal_conv1d_inputs, depthwise_inputs, norm_gate_inputs
from mtlkit.ops import AlignmentSignals, TIMParameters, UPAParameters, VarianceSignals
from mtlkit.testing import DirectionalScanShape, InteractionShape, SelectiveScanShape, SS2DShape, assert_accurate

NARROW = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, *NARROW)


class Call(NamedTuple):
    """A function of tensors that returns tensors by name, its arguments by name (on the CPU), and their layouts."""

    function: Callable[..., dict[str, Tensor]]
    inputs: dict[str, Tensor]
    places: Mapping[str, Place] = MappingProxyType({})

    def placed(self, **places: Place) -> "Call":
        """The same call with some arguments at other places in memory."""
        return self._replace(places={**self.places, **places})

    def leaves(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The arguments on a device, in their layouts, all with gradients enabled."""
        found = {name: t.detach().to(device=device, dtype=dtype or t.dtype) for name, t in self.inputs.items()}
        found |= {name: place(found[name]) for name, place in self.places.items()}
        return {name: t.requires_grad_() for name, t in found.items()}

    def of_output(self, name: str) -> "Call":
        """The same call, returning only one output."""
        return self._replace(function=lambda **tensors: {name: self.function(**tensors)[name]})

    def weights(self, outputs: dict[str, Tensor], place: Place | None = None) -> list[Tensor]:
        """Random weights of the outputs, exact in the first argument's dtype; `place` lays out the first weight."""
        dtype, generator = next(iter(self.inputs.values())).dtype, torch.Generator().manual_seed(7)
        found = [torch.randn(t.shape, generator=generator).to(dtype).to(t) for t in outputs.values()]
        return found if place is None else [place(found[0]), *found[1:]]

    def results(self, leaves: dict[str, Tensor], place: Place | None = None) -> dict[str, Tensor]:
        """Outputs and every gradient by name, for a loss with the same weights on all devices and dtypes."""
        outputs = self.function(**leaves)
        wanted = {name: t for name, t in leaves.items() if t.requires_grad}
        weights = self.weights(outputs, place)
        gradients = torch.autograd.grad(list(outputs.values()), list(wanted.values()), weights, materialize_grads=True)
        named = {name: t.detach() for name, t in outputs.items()}
        return named | {f"d{name}": g for name, g in zip(wanted, gradients, strict=True)}

    def run(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, place: Place | None = None
    ) -> dict[str, Tensor]:
        """`results`, on a device."""
        return self.results(self.leaves(device, dtype), place)

    def expected(self, backend: str = "reference", place: Place | None = None) -> tuple[dict[str, Tensor], ...]:
        """The expected `results`: of a backend in float64 and, for 16-bit arguments, also of plain PyTorch."""
        with mtlkit.use_backend(backend):
            exact = self.run(dtype=torch.float64, place=place)
        if all(t.dtype not in NARROW for t in self.inputs.values()):
            return exact, exact
        with mtlkit.use_backend("torch"):
            return exact, self.run(place=place)

    def check(
        self, device: torch.device | str = "cpu", exact_backend: str = "reference", place: Place | None = None
    ) -> dict[str, Tensor]:
        """Checks that results on the device meet the policy of mtlkit.testing, and returns them.

        Args:
            device: where the tested results are computed, by the current backend.
            exact_backend: computes the exact results in float64; "auto" if the reference takes too long.
            place: layout of the gradient of the first output.
        """
        got = self.run(device, place=place)
        assert_meets(got, self.expected(exact_backend, place), device)
        return got


def assert_meets(
    got: dict[str, Tensor], expected: tuple[dict[str, Tensor], ...], device: torch.device | str = "cpu"
) -> None:
    """Checks each result by name against the bounds of mtlkit.testing, on the device."""
    exact, plain = expected
    assert got.keys() == exact.keys()
    for name, value in got.items():
        assert value.device == torch.device(device), f"{name}: expected it on {device}, got {value.device}"
        assert_accurate(name, value.cpu(), exact[name], plain[name], gradient=name not in FORWARD)


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Checks that results are bitwise equal."""
    differing = [name for name in wanted if not torch.equal(got[name], wanted[name])]
    assert not differing, f"{', '.join(differing)}: other bits"


# --- the operators ----------------------------------------------------------------------------------------------------


def ss2d_call(shape: SS2DShape, dtype: torch.dtype = torch.float32, place: Place = NHWC, seed: int = 0) -> Call:
    return Call(lambda **tensors: {"y": mtlkit.ops.ss2d(**tensors)}, shape.inputs(dtype, seed=seed)).placed(u=place)


def scan_call(
    shape: SelectiveScanShape,
    dtype: torch.dtype = torch.float32,
    *,
    without: tuple[str, ...] = (),
    constant: tuple[str, ...] = (),
    softplus: bool = True,
    seed: int = 0,
) -> Call:
    """Includes the last state; `constant` names which of B and C are the same for every token."""
    inputs = shape.inputs(dtype, seed=seed)
    fixed = SelectiveScanShape(shape.B, shape.D, shape.L, shape.N, G=0).inputs(dtype, seed=seed + 1)
    inputs = {name: t for name, t in inputs.items() if name not in without} | {name: fixed[name] for name in constant}
    if not softplus:  # time steps must be positive
        inputs["delta"] = 0.1 * inputs["delta"].abs()
        inputs |= {name: 0.01 * inputs[name].abs() for name in ("delta_bias",) if name in inputs}

    def function(**tensors: Tensor) -> dict[str, Tensor]:
        out, last = mtlkit.ops.selective_scan(**tensors, delta_softplus=softplus, return_last_state=True)
        return {"out": out, "last": last}

    return Call(function, inputs)


def directional_call(
    shape: DirectionalScanShape,
    dtype: torch.dtype = torch.float32,
    *,
    order: str = "random",
    sequences: int = 0,
    merge: bool = True,
    seed: int = 0,
) -> Call:
    """Includes the last state; `order` is one of `visits`, and `sequences` the length of each, 0 for a single one."""

    def function(**tensors: Tensor) -> dict[str, Tensor]:
        u = tensors["u"]
        samples, tokens = u.shape[0], u.shape[-1]
        if sequences:
            tensors["seq_idx"] = (torch.arange(tokens, device=u.device) // sequences).expand(samples, -1)
        visited = visits(order, shape.K, tokens, samples)
        y, last = mtlkit.ops.directional_scan(**tensors, order=visited, merge=merge, return_last_state=True)
        return {"y": y, "last": last}

    return Call(function, shape.inputs(dtype, seed=seed))


def norm_call(
    size: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    parameters: torch.dtype | None = None,
    gate: torch.dtype | None = None,
    without: tuple[str, ...] = (),
    seed: int = 0,
) -> Call:
    """`parameters` and `gate` are dtypes; default: that of x."""
    inputs = norm_gate_inputs(size, dtype, parameters=parameters, gate=gate, seed=seed)
    inputs = {name: t for name, t in inputs.items() if name not in without}
    return Call(lambda **tensors: {"y": mtlkit.ops.norm_gate(**tensors)}, inputs)


def conv_call(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
    place: Place = NHWC,
    *,
    parameters: torch.dtype | None = None,
    bias: bool = True,
    seed: int = 0,
) -> Call:
    """`parameters` is a dtype; default: that of x."""
    inputs = depthwise_inputs(shape, 3, dtype, parameters=parameters, seed=seed)
    inputs = {name: t for name, t in inputs.items() if bias or name != "bias"}
    return Call(lambda **tensors: {"y": mtlkit.ops.dwconv_silu(**{"bias": None, **tensors})}, inputs).placed(x=place)


def depthwise_call(
    shape: tuple[int, int, int, int],
    kernel: int = 3,
    dtype: torch.dtype = torch.float32,
    place: Place = NHWC,
    *,
    parameters: torch.dtype | None = None,
    bias: bool = True,
    seed: int = 0,
    **options: Any,
) -> Call:
    """`parameters` is a dtype, by default that of x; `options` are the operator's options."""
    inputs = depthwise_inputs(shape, kernel, dtype, parameters=parameters, seed=seed)
    inputs = {name: t for name, t in inputs.items() if bias or name != "bias"}

    def function(**tensors: Tensor) -> dict[str, Tensor]:
        return {"y": mtlkit.ops.depthwise_conv2d(**tensors, **options)}

    return Call(function, inputs).placed(x=place)


def causal_conv_call(
    shape: tuple[int, int, int],
    width: int = 4,
    dtype: torch.dtype = torch.float32,
    place: Place = kept,
    *,
    parameters: torch.dtype | None = None,
    without: tuple[str, ...] = (),
    activation: str | None = "silu",
    seed: int = 0,
) -> Call:
    """Includes the last states; `parameters` is a dtype; default: that of x."""
    inputs = causal_conv1d_inputs(shape, width, dtype, parameters=parameters, seed=seed)

    def function(**tensors: Tensor) -> dict[str, Tensor]:
        y, last = mtlkit.ops.causal_conv1d(**tensors, return_final_states=True, activation=activation)
        return {"y": y, "last": last}

    return Call(function, {name: t for name, t in inputs.items() if name not in without}).placed(x=place)


def level_call(
    shape: InteractionShape,
    dtype: torch.dtype = torch.float32,
    place: Place = NCHW,
    *,
    training: bool = False,
    enhanced: bool = True,
    seed: int = 7,
) -> Call:
    """A level of task interaction: map, vector, optionally the enhanced map, gates and signals.

    With one pixel or channel, random values may almost cancel in a sum; those of seed 7 do not.
    """
    inputs = shape.inputs(dtype, seed=seed)
    signals = (VarianceSignals if shape.signals == "variance" else AlignmentSignals)._fields

    def function(x: Tensor, f: Tensor, **learnt: Tensor) -> dict[str, Tensor]:
        running = {name: getattr(inputs.tim, name).to(x, copy=True) for name in ("norm_mean", "norm_var")}
        tim, upa = (
            kind(**{name: t for name, t in {**learnt, **running}.items() if name in kind._fields})
            for kind in (TIMParameters, UPAParameters)
        )
        options = {"signals": shape.signals, "training": training, "return_enhanced": enhanced}
        out = mtlkit.ops.task_interaction(x, f, tim, upa, **options)
        named = {"seg": out.seg, "clf": out.clf, "gates": out.gates}
        if enhanced:
            named["enhanced_seg"] = out.enhanced_seg
        return {**named, **{f"stats_{name}": getattr(out.stats, name) for name in signals}}

    return Call(function, inputs.named_tensors()).placed(x=place)


def one_of_each(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Call]:
    """A small call of every operator, and for each scan one that is split into chunks of its sequence."""
    wide = {"parameters": torch.float32, "seed": seed}
    return {
        "ss2d": ss2d_call(SS2DShape(2, 33, 5, 7, 16, 4), dtype, seed=seed),
        "ss2d, channels first": ss2d_call(SS2DShape(1, 10, 6, 11, 17, 24), dtype, NCHW, seed=seed),
        "ss2d, split": ss2d_call(SS2DShape(1, 9, 33, 37, 4, 2), dtype, seed=seed),
        "selective_scan": scan_call(SelectiveScanShape(2, 34, 35, 16, G=2), dtype, seed=seed),
        "selective_scan, constant": scan_call(SelectiveScanShape(1, 5, 10, 20, G=0), dtype, seed=seed),
        "selective_scan, split": scan_call(SelectiveScanShape(1, 9, 1221, 4), dtype, seed=seed),
        "directional_scan": directional_call(DirectionalScanShape(2, 3, 34, 35, 16, 3, True, True), dtype, seed=seed),
        "norm_gate": norm_call((35, 132), dtype, **wide),
        "norm_gate, ragged": norm_call((9, 37), dtype, **wide),
        "depthwise_conv2d": depthwise_call((2, 36, 9, 13), 5, dtype, activation="silu", **wide),
        "depthwise_conv2d, stride 2": depthwise_call((1, 5, 9, 12), 3, dtype, NCHW, bias=False, stride=2, **wide),
        "dwconv_silu": conv_call((2, 36, 9, 13), dtype, **wide),
        "dwconv_silu, channels first": conv_call((1, 5, 6, 11), dtype, NCHW, **wide),
    }


NAMES = tuple(one_of_each())
