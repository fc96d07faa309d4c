"""A dozen small calls of every operator, and a comparison of any backend with the reference on them.

`mtlkit doctor` makes these calls, and the check of a GPU's kernels at their first use makes the first call of each
operator; the test matrix takes its shapes from here. Sizes are odd and tiny, or close to the tile sizes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mtlkit._accuracy import ROUNDING, Accuracy, accuracy
from mtlkit.operators import (
    causal_conv1d,
    depthwise_conv2d,
    directional_scan,
    dwconv_silu,
    interaction,
    norm_gate,
    selective_scan,
    selective_state_update,
    ss2d,
    ss2d_norm_gate,
)
from mtlkit.operators._operator import Operator
from mtlkit.operators._step import Step
from mtlkit.operators.causal_conv1d import update
from mtlkit.operators.directional_scan.orders import ScanOrder, both, permutation
from mtlkit.operators.directional_scan.signature import order_of
from mtlkit.operators.interaction.types import TIMParameters, UPAParameters
from mtlkit.operators.shapes import (
    DirectionalScanShape,
    InteractionInputs,
    InteractionShape,
    SelectiveScanShape,
    SS2DShape,
    causal_conv1d_inputs,
    depthwise_inputs,
    norm_gate_inputs,
)

Tensors = dict[str, Tensor]
Results = dict[str, Tensor]

# outputs compared with the tolerances for outputs; others, such as gates, and gradients use those for gradients
FORWARD = ("y", "out", "last", "seg", "clf", "enhanced_seg", "state", "conv_state")


class Sample(NamedTuple):
    """A call of an operator.

    Fields:
        operator: name of the operator in `mtlkit.ops`.
        words: sizes and settings in words.
        tensors: arguments by name, in float32 on the CPU; integers have their own dtype.
        served: backends of the operator, fastest first.
        limit: (backend, tensors) -> why a backend cannot run the call; None if it can.
        run: (backend, tensors) -> outputs by name.
        gradients: whether the operator has gradients.
    """

    operator: str
    words: str
    tensors: Callable[[], Tensors]
    served: tuple[str, ...]
    limit: Callable[[str, Tensors], str | None]
    run: Callable[[str, Tensors], Results]
    gradients: bool = True

    def given(self, dtype: torch.dtype) -> Tensors:
        """The arguments in a dtype: equal values in both 16-bit dtypes, and equal values in float32 and float64."""

        def cast(t: Tensor) -> Tensor:
            if not t.is_floating_point():
                return t
            return t.half().bfloat16().to(dtype) if dtype in ROUNDING else t.to(dtype)

        return {name: cast(t) for name, t in self.tensors().items()}

    def results(self, backend: str, tensors: Tensors) -> Results:
        """The outputs of a backend, and the gradient of every argument under "d" plus its name, on the same device."""
        leaves = {n: t.detach().requires_grad_(self.gradients and t.is_floating_point()) for n, t in tensors.items()}
        outputs = self.run(backend, leaves)
        if not self.gradients:
            return outputs
        wanted = {name: t for name, t in leaves.items() if t.requires_grad}
        weights = weights_of(outputs)
        found = torch.autograd.grad(list(outputs.values()), list(wanted.values()), weights, materialize_grads=True)
        named = {name: t.detach() for name, t in outputs.items()}
        return named | {f"d{name}": g for name, g in zip(wanted, found, strict=True)}

    def exact(self, dtype: torch.dtype) -> Results:
        """The results of the reference in float64, for the values in a dtype."""
        given = self.given(dtype)
        return self.results("reference", {n: t.double() if t.is_floating_point() else t for n, t in given.items()})

    def plain(self, dtype: torch.dtype) -> Results | None:
        """The results of plain PyTorch in a 16-bit dtype, for its tolerances; None for other dtypes."""
        return self.results("torch", self.given(dtype)) if dtype in ROUNDING else None


def weights_of(outputs: Results) -> list[Tensor]:
    """Random gradients of outputs, exact in every dtype and the same for the same shapes."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(t.shape, generator=generator).half().bfloat16().to(t) for t in outputs.values()]


def compare(got: Results, exact: Results, plain: Results | None) -> dict[str, Accuracy]:
    """Compares each result, on any device, by the tolerances of mtlkit.testing."""

    def judge(name: str) -> Accuracy:
        beside = None if plain is None else plain[name]
        return accuracy(name, got[name].cpu(), exact[name], beside, gradient=name not in FORWARD)

    return {name: judge(name) for name in exact}


# --- kinds of operators -----------------------------------------------------------------------------------------------


def _call(
    operator: Operator,
    words: object,
    tensors: Callable[[], Tensors],
    *outputs: str,
    options: Callable[[Tensors], tuple[Any, ...]] = lambda given: (),
    fixed: Callable[[Tensors], Tensors] = lambda given: {},
) -> Sample:
    """A call of an operator with gradients; `options` and further tensors may depend on the given tensors."""

    def packed(given: Tensors) -> tuple[Any, Any]:
        whole = given | fixed(given)
        inputs = operator.inputs._make(map(whole.get, operator.inputs._fields))
        return inputs, operator.options._make(options(given))

    def run(backend: str, given: Tensors) -> Results:
        return dict(zip(outputs, operator.run(backend, *packed(given)), strict=True))

    def limit(backend: str, given: Tensors) -> str | None:
        return operator.limit(backend, *packed(given))

    return Sample(operator.name, str(words), tensors, operator.served, limit, run)


def _step(step: Step, words: object, tensors: Callable[[], Tensors], *options: Any) -> Sample:
    """A call of a decoding step, with its output and the new state."""

    def run(backend: str, given: Tensors) -> Results:
        given = {**given, step.state: given[step.state].clone()}
        y = step.run(backend, step.inputs._make(map(given.get, step.inputs._fields)), step.options._make(options))
        return {"y": y, step.state: given[step.state]}

    return Sample(step.name, str(words), tensors, tuple(step.backends), lambda backend, given: None, run, False)


def _level(size: tuple[int, int, int, int], signals: str, attention: bool) -> Sample:
    """A call of a level of task interaction."""
    shape = InteractionShape(*size, F=12, signals=signals, attention=attention)

    def made() -> InteractionInputs:
        return shape.inputs(seed=7)  # for a single pixel or channel, other seeds may give a sum close to zero

    def run(backend: str, given: Tensors) -> Results:
        fixed = made().tim
        running = {name: getattr(fixed, name).half().bfloat16() for name in ("norm_mean", "norm_var")}
        whole = given | {name: t.to(given["x"]) for name, t in running.items()}
        tim = TIMParameters._make(map(whole.get, TIMParameters._fields))
        upa = UPAParameters._make(map(whole.get, UPAParameters._fields))
        out = interaction.interact(backend, given["x"], given["f"], tim, upa, signals)
        return {"seg": out.seg, "clf": out.clf, "gates": out.gates}

    def limit(backend: str, given: Tensors) -> str | None:
        return interaction.limit(backend, *given.values())

    words = f"{size} {signals}" + (" attention" if attention else "")
    return Sample("task_interaction", words, lambda: made().named_tensors(), interaction.SERVED, limit, run)


# --- the calls --------------------------------------------------------------------------------------------------------

# Every kind of N and R; one pixel, one row, one column, one channel; D not a multiple of the vector; many tokens.
SS2D = (
    SS2DShape(2, 24, 7, 5, 16, 3),
    SS2DShape(1, 5, 3, 4, 1, 1),
    SS2DShape(1, 1, 1, 1, 16, 1),
    SS2DShape(3, 17, 9, 6, 3, 2),
    SS2DShape(1, 33, 1, 7, 16, 2),
    SS2DShape(1, 8, 33, 1, 64, 1),
    SS2DShape(1, 20, 8, 13, 40, 5),
    SS2DShape(2, 16, 4, 8, 1, 4),
    SS2DShape(1, 19, 5, 13, 4, 24),
    SS2DShape(1, 3, 8, 8, 2, 1),
)

# B and C with one group, several groups, one per channel, and constant (G = 0).
SELECTIVE_SCAN = (
    SelectiveScanShape(2, 24, 35, 16),
    SelectiveScanShape(1, 5, 1, 1),
    SelectiveScanShape(1, 1, 33, 16),
    SelectiveScanShape(3, 18, 64, 3, G=3),
    SelectiveScanShape(1, 33, 31, 40),
    SelectiveScanShape(2, 16, 97, 1, G=2),
    SelectiveScanShape(1, 12, 70, 4, G=12),
    SelectiveScanShape(2, 17, 40, 8, G=0),
    SelectiveScanShape(1, 7, 513, 2),
)

# Shape, kind of order, length of the sequences (0: a single one), merged or not: one token, one direction and # many,
# every kind of N, R, order and input.
DIRECTIONAL_SCAN = (
    (DirectionalScanShape(2, 3, 24, 35, 16, 3, own=True, state=True), "random", 9, False),
    (DirectionalScanShape(1, 1, 5, 1, 1, 1, state=True), "random", 0, True),
    (DirectionalScanShape(2, 5, 17, 54, 3, 2), "half", 0, True),
    (DirectionalScanShape(2, 2, 33, 7, 16, 2, own=True), "own", 0, True),
    (DirectionalScanShape(1, 2, 8, 33, 64, 1), "both", 0, False),
    (DirectionalScanShape(1, 4, 20, 104, 1, 5, state=True), "half", 31, True),
    (DirectionalScanShape(2, 3, 16, 32, 16, 16), "own", 5, True),
)

# One row, one channel; channels below, at and next to full vectors; more and fewer rows than a vector has lanes.
NORM_GATE = ((1,), (5,), (4, 1), (2, 3, 3, 7), (1, 33, 16), (2, 5, 37), (3, 1, 2, 100), (1, 7, 11, 96), (2, 768))

# One pixel, one row, one column, one channel; channels below, at and next to full vectors; H != W.
DWCONV_SILU = ((1, 1, 1, 1), (2, 3, 1, 5), (1, 33, 6, 1), (2, 1, 4, 9), (3, 20, 2, 4), (1, 16, 5, 8), (1, 100, 13, 11))

# Size, window, settings, whether there is a bias.
_SILU = ("activation", "silu")
_SAME = ("padding", (0, 1, 0, 1))  # TensorFlow's padding for even sizes
DEPTHWISE_CONV2D = (
    ((1, 1, 1, 1), 5, (_SILU,), True),
    ((2, 3, 1, 5), 7, (), False),
    ((1, 33, 6, 1), 3, (("dilation", 2), _SILU), True),
    ((2, 1, 4, 9), 5, (("dilation", 4),), True),
    ((1, 20, 11, 10), 3, (("stride", 2), _SAME), False),
    ((1, 16, 8, 9), 5, (("stride", 2), _SILU), True),
    ((1, 3, 2, 3), 7, (("stride", 2),), True),
    ((1, 9, 9, 11), 3, (("padding", 0),), True),
    ((1, 5, 6, 7), 5, (("padding", (4, 3, 2, 4)),), True),
    ((1, 2, 41, 60), 5, (_SILU,), True),
    ((1, 2, 70, 61), 7, (("stride", 2),), False),
    # dilated ones stay small: on larger maps, PyTorch's own bfloat16 gradient reads uninitialised memory
    ((1, 3, 66, 62), 3, (), False),
)

# Size, width, arguments that are None, activation: one token, one channel; fewer tokens than taps; more than a tile.
CAUSAL_CONV1D: tuple[tuple[tuple[int, int, int], int, tuple[str, ...], str | None], ...] = (
    ((1, 1, 1), 4, (), "silu"),
    ((2, 3, 5), 3, ("bias",), "silu"),
    ((1, 33, 2), 4, ("initial_states",), "silu"),
    ((2, 1, 40), 2, (), "silu"),
    ((1, 16, 97), 4, (), "silu"),
    ((3, 20, 70), 3, (), None),
    ((1, 18, 530), 4, (), "silu"),
)

# One pixel, one row, one column; channels below, at and next to full vectors; several bands of pixels; one channel.
TASK_INTERACTION = (
    (2, 5, 1, 1),
    (2, 16, 1, 9),
    (1, 7, 13, 1),
    (2, 1, 4, 5),
    (3, 33, 5, 7),
    (2, 48, 14, 14),
    (2, 20, 41, 37),
)
SIGNALS = ("variance", "alignment")


def visits(kind: str, directions: int, tokens: int, samples: int) -> ScanOrder:
    """An order: "both" ways, "random", a random "half" of the tokens, or each sample's "own" random order."""
    if kind == "both":
        return both(tokens)
    generator = torch.Generator().manual_seed(tokens)
    count = directions * (samples if kind == "own" else 1)
    rows = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(max(1, count))])[:count]
    rows = rows[:, : (tokens + 1) // 2] if kind == "half" else rows
    rows = rows.view(samples, directions, tokens) if kind == "own" else rows
    return permutation(rows, tokens)


def _ss2d(shape: SS2DShape, memory_format: torch.memory_format = torch.channels_last) -> Sample:
    words = f"{shape}" + ("" if memory_format == torch.channels_last else " channels first")
    made = partial(shape.inputs, memory_format=memory_format)
    return _call(ss2d.OPERATOR, words, made, "y", options=lambda given: (given["u"].dtype,))


def _ss2d_norm_gate(shape: SS2DShape) -> Sample:
    def made() -> Tensors:
        rows = norm_gate_inputs((shape.B, shape.H, shape.W, shape.D))
        return shape.inputs() | {name: rows[name] for name in ("weight", "bias", "z")}

    return _call(ss2d_norm_gate.OPERATOR, shape, made, "y", options=lambda given: (1e-5, given["u"].dtype))


def _directional(shape: DirectionalScanShape, kind: str, sequences: int, merge: bool) -> Sample:
    words = f"{shape} {kind}" + (f" sequences of {sequences}" if sequences else "") + ("" if merge else " apart")

    def order(given: Tensors) -> tuple[Tensor | None, int, tuple[int, ...]]:
        return order_of(visits(kind, shape.K, shape.L, shape.B), given["u"])

    def fixed(given: Tensors) -> Tensors:
        table, device = order(given)[0], given["u"].device
        found = {} if table is None else {"table": table}
        if sequences:
            index = torch.arange(shape.L, device=device, dtype=torch.int32) // sequences
            found["seq_idx"] = index.expand(shape.B, -1).contiguous()
        return found

    def options(given: Tensors) -> tuple[Any, ...]:
        return merge, given["u"].dtype, *order(given)[1:]

    return _call(directional_scan.OPERATOR, words, shape.inputs, "y", "last", options=options, fixed=fixed)


def _norm_gate(size: tuple[int, ...], without: tuple[str, ...] = ()) -> Sample:
    def made() -> Tensors:
        return {name: t for name, t in norm_gate_inputs(size).items() if name not in without}

    words = " ".join([f"{size}", *(f"without {name}" for name in without)])
    return _call(norm_gate.OPERATOR, words, made, "y", options=lambda given: (1e-5,))


def _dwconv_silu(size: tuple[int, int, int, int], memory_format: torch.memory_format) -> Sample:
    def made() -> Tensors:
        given = depthwise_inputs(size)
        return given | {"x": given["x"].contiguous(memory_format=memory_format)}

    words = f"{size}" + ("" if memory_format == torch.channels_last else " channels first")
    return _call(dwconv_silu.OPERATOR, words, made, "y")


def _depthwise(size: tuple[int, int, int, int], kernel: int, settings: tuple[Any, ...], bias: bool) -> Sample:
    chosen = dict(settings)
    dilation = chosen.get("dilation", 1)
    padding = chosen.get("padding", dilation * (kernel - 1) // 2)
    sides = padding if isinstance(padding, tuple) else (padding,) * 4
    options = chosen.get("stride", 1), sides, dilation, "activation" in chosen

    def made() -> Tensors:
        given = depthwise_inputs(size, kernel)
        given["x"] = given["x"].contiguous(memory_format=torch.channels_last)
        return given if bias else {name: t for name, t in given.items() if name != "bias"}

    words = " ".join([f"{size} k{kernel}", *(f"{name}={value}" for name, value in settings)])
    return _call(depthwise_conv2d.OPERATOR, words, made, "y", options=lambda given: options)


def _causal(size: tuple[int, int, int], width: int, without: tuple[str, ...], activation: str | None) -> Sample:
    def made() -> Tensors:
        return {name: t for name, t in causal_conv1d_inputs(size, width).items() if name not in without}

    options = activation is not None, True
    words = " ".join([f"{size} w{width}", *(f"without {name}" for name in without), activation or "plain"])
    return _call(causal_conv1d.OPERATOR, words, made, "y", "last", options=lambda given: options)


def _state_update(shape: SelectiveScanShape) -> Sample:
    """A token, and a state that is not zero."""

    def made() -> Tensors:
        given = shape.inputs()
        tokens = {name: given[name][..., 0] for name in ("u", "delta", "B", "C", "z")}
        state = torch.randn(shape.B, shape.D, shape.N, generator=torch.Generator().manual_seed(1))
        tokens = {"x": tokens.pop("u"), "dt": tokens.pop("delta"), **tokens, "state": state}
        return tokens | {"A": given["A"], "D": given["D"], "dt_bias": given["delta_bias"]}

    words = f"B={shape.B}, D={shape.D}, N={shape.N}"
    return _step(selective_state_update.STEP, words, made, True)


def _conv_update(size: tuple[int, int, int], width: int) -> Sample:
    def made() -> Tensors:
        given = causal_conv1d_inputs(size, width)
        return {"conv_state": given.pop("initial_states"), **given}

    return _step(update.STEP, f"{size} w{width}", made, True)


def _scan(shape: SelectiveScanShape) -> Sample:
    return _call(selective_scan.OPERATOR, shape, shape.inputs, "out", "last", options=lambda given: (True,))


def samples() -> dict[str, tuple[Sample, ...]]:
    """The sample calls of each operator by its name, up to a dozen.

    The first call has sizes that Triton's compiler treats like those of networks, most of them multiples of 16, while
    channels and tokens do not fill the last block or tile.
    """
    channels_first = torch.contiguous_format
    nhwc = (_dwconv_silu(size, torch.channels_last) for size in DWCONV_SILU)
    nchw = (_dwconv_silu(size, channels_first) for size in DWCONV_SILU[-4:])
    return {
        "ss2d": (
            _ss2d(SS2DShape(2, 48, 8, 6, 16, 3)),
            *map(_ss2d, SS2D),
            _ss2d(SS2DShape(1, 10, 6, 11, 17, 24), channels_first),
            _ss2d(SS2DShape(1, 9, 21, 37, 4, 2)),
        ),
        "selective_scan": (
            _scan(SelectiveScanShape(2, 48, 48, 16)),
            *map(_scan, SELECTIVE_SCAN),
            *map(_scan, (SelectiveScanShape(1, 10, 20, 256), SelectiveScanShape(2, 65, 17, 8))),
        ),
        "directional_scan": (
            _directional(DirectionalScanShape(2, 2, 48, 48, 16, 3), "both", 0, True),
            *(_directional(*case) for case in DIRECTIONAL_SCAN),
        ),
        "norm_gate": (
            _norm_gate((2, 8, 6, 48)),
            *(
                _norm_gate(size) for size in NORM_GATE if size[-1] > 1
            ),  # with one channel, the gradient of x is only rounding error
            *(_norm_gate((3, 5, 41), without) for without in (("z",), ("weight",), ("bias",))),
        ),
        "ss2d_norm_gate": (_ss2d_norm_gate(SS2DShape(2, 48, 8, 6, 16, 3)), *map(_ss2d_norm_gate, SS2D)),
        "dwconv_silu": (_dwconv_silu((2, 48, 8, 6), torch.channels_last), *nhwc, *nchw),
        "depthwise_conv2d": (
            _depthwise((2, 48, 8, 6), 3, (_SILU,), True),
            *(_depthwise(*case) for case in DEPTHWISE_CONV2D),
        ),
        "causal_conv1d": (_causal((2, 48, 48), 4, (), "silu"), *(_causal(*case) for case in CAUSAL_CONV1D)),
        "task_interaction": tuple(
            _level(size, signals, bool(i % 2))
            for i, size in enumerate(((2, 48, 8, 6), *TASK_INTERACTION))
            for signals in SIGNALS
        ),
        "selective_state_update": tuple(_state_update(shape) for shape in SELECTIVE_SCAN if shape.G == 1),
        "causal_conv1d_update": tuple(_conv_update(size, width) for size, width, *_ in CAUSAL_CONV1D),
    }


def first_samples(operator: str) -> tuple[Sample, ...]:
    """The calls of the check at first use: the first one, and for task interaction one for each kind of signals."""
    return samples()[operator][: len(SIGNALS) if operator == "task_interaction" else 1]
