"""Random calls of every operator, each determined by a number: see tests/fuzz.py."""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mtlkit
from harness.calls import visits
from harness.layouts import NHWC, Place, part
from mtlkit import _native
from mtlkit.ops import TIMParameters, UPAParameters
from mtlkit.testing import DirectionalScanShape, InteractionShape, SelectiveScanShape, SS2DShape

Function = Callable[..., dict[str, Tensor]]
NAN, INF = float("nan"), float("inf")
DTYPES = (torch.float32,) * 5 + (torch.float64, torch.bfloat16, torch.bfloat16, torch.float16, torch.float16)
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 20, 31, 32, 33, 40)  # channels: at and next to vectors of 4, 8 and 16
STATES = (1, 2, 3, 4, 5, 8, 16, 17)
LEAST_NORMALISED = 3  # channels: with fewer, a LayerNorm leaves only signs; the gradient is rounding error
HUGE = {torch.float32: 8, torch.float64: 8, torch.bfloat16: 8, torch.float16: 3}  # decades; products of four are finite
# Backends by frequency per 1000: CUDA kernels on the host and interpreted Triton kernels are slow.
BACKENDS = {"cpu": 870, "torch": 120, "cuda": 9, "triton": 1}
OF_GPU = {
    "cuda": ("ss2d", "selective_scan", "norm_gate", "dwconv_silu", "ss2d_norm_gate"),
    "triton": ("ss2d", "selective_scan", "norm_gate", "dwconv_silu", "ss2d_norm_gate", "tim_pool", "tim_modulate"),
}


class Drawn(NamedTuple):
    """A randomly drawn call.

    Fields:
        seed: the number that determines it.
        operator: name in mtlkit.ops.
        function: takes tensors by name and returns tensors by name.
        tensors: its arguments, with their memory layout.
        wanted: names of the arguments that need a gradient.
        weights: of the outputs in the loss, by name; None for an output that is not in the loss.
        backend, threads, level: how it is computed.
        kind: "ordinary"; "extreme" values, with possibly ill-conditioned results; "spoilt" by NaN or infinity.
    """

    seed: int
    operator: str
    function: Function
    tensors: dict[str, Tensor]
    wanted: tuple[str, ...]
    weights: Callable[[str, Tensor], Tensor | None]
    backend: str
    threads: int
    level: str | None
    kind: str

    def __str__(self) -> str:
        shapes = ", ".join(
            f"{name} {str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for name, t in self.tensors.items()
        )
        where = f"{self.backend} {self.level or ''}".strip()
        return f"{self.operator}({shapes}) on {where}, {self.threads} threads, {self.kind}"


class _Shape(NamedTuple):
    """The arguments of an operator in float64, its function, and the arguments that get the dtype of activations."""

    function: Function
    inputs: dict[str, Tensor]
    activations: tuple[str, ...]


# --- numbers ----------------------------------------------------------------------------------------------------------


class _Dice(random.Random):
    """Random choices, and tensors."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator, dtype=torch.float64)

    def happens(self, chance: float) -> bool:
        return self.random() < chance

    def batch(self) -> int:
        return 0 if self.happens(0.02) else self.randint(1, 3)

    def image(self, small: bool) -> tuple[int, int]:
        if small:
            return self.randint(1, 4), self.randint(1, 5)
        if self.happens(0.03):
            return self.randint(1, 40), self.randint(10, 40)
        return self.randint(1, 9), self.randint(1, 11)

    def channels(self, small: bool, least: int = 1) -> int:
        return self.choice([size for size in SIZES if size >= least and (size < 18 or not small)])

    def leave_out(self, names: tuple[str, ...], chance: float = 0.25) -> set[str]:
        return {name for name in names if self.happens(chance)}


def _without(inputs: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    return {name: t for name, t in inputs.items() if name not in names}


# --- operators --------------------------------------------------------------------------------------------------------


def _ss2d_inputs(dice: _Dice, small: bool, least: int = 1) -> dict[str, Tensor]:
    H, W = dice.image(small)
    D = dice.channels(small or H * W > 200, least)
    shape = SS2DShape(dice.batch(), D, H, W, dice.choice(STATES), dice.randint(1, 6))
    return shape.inputs(torch.float64, seed=dice.randrange(2**31))


def _ss2d(dice: _Dice, small: bool) -> _Shape:
    wide = dice.happens(0.2)

    def function(**tensors: Tensor) -> dict[str, Tensor]:
        u = tensors["u"]
        dtype = torch.promote_types(u.dtype, torch.float32) if wide else u.dtype
        return {"y": mtlkit.ops.ss2d(**tensors, out_dtype=dtype)}

    return _Shape(function, _ss2d_inputs(dice, small), ("u", "x_dbl"))


def _ss2d_norm_gate(dice: _Dice, small: bool) -> _Shape:
    scan = _ss2d_inputs(dice, small, LEAST_NORMALISED)
    B, D, H, W = scan["u"].shape
    norm = {"weight": dice.normal(D), "bias": dice.normal(D), "z": dice.normal(B, H, W, D)}
    inputs = _without({**scan, **norm}, dice.leave_out(("weight", "bias", "z")))
    return _Shape(lambda **tensors: {"y": mtlkit.ops.ss2d_norm_gate(**tensors)}, inputs, ("u", "x_dbl", "z"))


def _selective_scan(dice: _Dice, small: bool) -> _Shape:
    D, length, groups = dice.channels(small), math.prod(dice.image(small)), dice.choice((1, 1, 0, 2))
    D = min(D, 4) if length > 200 else D
    groups = D if groups == 2 and (D % 2 or dice.happens(0.5)) else groups
    shape = SelectiveScanShape(dice.batch(), D, length, dice.choice(STATES), groups)
    inputs = shape.inputs(torch.float64, seed=dice.randrange(2**31))
    constant = SelectiveScanShape(shape.B, D, length, shape.N, 0).inputs(torch.float64, seed=dice.randrange(2**31))
    if shape.G < 2:
        inputs |= {name: constant[name] for name in dice.leave_out(("B", "C"), 0.2)}
    softplus, last = dice.happens(0.7), dice.happens(0.5)
    if not softplus:  # time steps must be positive
        inputs["delta"], inputs["delta_bias"] = 0.1 * inputs["delta"].abs(), 0.01 * inputs["delta_bias"].abs()

    def function(**tensors: Tensor) -> dict[str, Tensor]:
        found = mtlkit.ops.selective_scan(**tensors, delta_softplus=softplus, return_last_state=last)
        return dict(zip(("out", "last"), found if last else (found,), strict=False))

    inputs = _without(inputs, dice.leave_out(("D", "z", "delta_bias")))
    return _Shape(function, inputs, ("u", "delta", "B", "C", "z"))


def _directional_scan(dice: _Dice, small: bool) -> _Shape:
    D, length, K = dice.channels(small), math.prod(dice.image(small)), dice.randint(1, 5)
    D = min(D, 4) if length > 200 else D
    own, state = dice.happens(0.4), dice.happens(0.5)
    shape = DirectionalScanShape(dice.batch(), K, D, length, dice.choice(STATES), dice.randint(1, 6), own, state)
    order = visits(dice.choice(("random", "half", "own")), K, length, shape.B)
    sequences = (
        torch.randint(0, 2, (shape.B, length), generator=dice.generator).cumsum(1) if dice.happens(0.4) else None
    )
    merge, last = dice.happens(0.6), dice.happens(0.5)

    def function(**tensors: Tensor) -> dict[str, Tensor]:
        found = mtlkit.ops.directional_scan(
            **tensors, order=order, seq_idx=sequences, merge=merge, return_last_state=last
        )
        return dict(zip(("y", "last"), found if last else (found,), strict=False))

    inputs = shape.inputs(torch.float64, seed=dice.randrange(2**31))
    return _Shape(function, inputs, ("u", "x_dbl"))


def _causal_conv1d(dice: _Dice, small: bool) -> _Shape:
    B, D, length, width = dice.batch(), dice.channels(small), math.prod(dice.image(small)), dice.choice((2, 3, 4))
    inputs = {
        "x": dice.normal(B, D, length),
        "weight": dice.normal(D, width) / 2,
        "bias": dice.normal(D),
        "initial_states": dice.normal(B, D, width - 1),
    }
    activation, last, sequences = dice.choice((None, "silu")), dice.happens(0.5), None
    if dice.happens(0.3):  # calls with several sequences have no states
        sequences, last = torch.randint(0, 2, (B, length), generator=dice.generator).cumsum(1) - 1, False
        del inputs["initial_states"]

    def function(**tensors: Tensor) -> dict[str, Tensor]:
        found = mtlkit.ops.causal_conv1d(**tensors, seq_idx=sequences, return_final_states=last, activation=activation)
        return dict(zip(("y", "last"), found if last else (found,), strict=False))

    return _Shape(function, _without(inputs, dice.leave_out(("bias", "initial_states"))), ("x", "initial_states"))


def _norm_gate(dice: _Dice, small: bool) -> _Shape:
    D = dice.choice([100, 132, 768]) if dice.happens(0.05) else dice.channels(small, LEAST_NORMALISED)
    size = (*(dice.randint(0 if dice.happens(0.02) else 1, 6) for _ in range(dice.randint(0, 3))), D)
    inputs = {
        "x": 3 * dice.normal(*size) + 1,
        "weight": dice.normal(D),
        "bias": dice.normal(D),
        "z": dice.normal(*size),
    }
    eps = dice.choice((1e-5, 1e-5, 1e-6, 1e-3))
    inputs = _without(inputs, dice.leave_out(("weight", "bias", "z")))
    return _Shape(lambda **tensors: {"y": mtlkit.ops.norm_gate(**tensors, eps=eps)}, inputs, ("x", "z"))


def _dwconv_silu(dice: _Dice, small: bool) -> _Shape:
    D = dice.channels(small)
    inputs = {
        "x": dice.normal(dice.batch(), D, *dice.image(small)),
        "weight": dice.normal(D, 1, 3, 3) / 2,
        "bias": dice.normal(D),
    }
    inputs = _without(inputs, dice.leave_out(("bias",)))
    return _Shape(lambda **tensors: {"y": mtlkit.ops.dwconv_silu(**tensors)}, inputs, ("x",))


def _depthwise_conv2d(dice: _Dice, small: bool) -> _Shape:
    D, (H, W), kernel = dice.channels(small), dice.image(small), dice.choice((3, 3, 5, 7))
    stride, dilation = dice.choice(((1, 1), (1, 1), (2, 1), (1, 2), (1, 4)))
    reach = dilation * (kernel - 1)
    least = max(0, reach + 1 - min(H, W))  # padding that makes a window fit
    padding = dice.choice((None, tuple(dice.randint(least, max(least, reach)) for _ in range(4))))
    if padding is None and 2 * (reach // 2) < least:
        padding = (least,) * 4
    options = {"stride": stride, "dilation": dilation, "padding": padding, "activation": dice.choice((None, "silu"))}
    inputs = {
        "x": dice.normal(dice.batch(), D, H, W),
        "weight": dice.normal(D, 1, kernel, kernel) / 2,
        "bias": dice.normal(D),
    }
    inputs = _without(inputs, dice.leave_out(("bias",)))
    return _Shape(lambda **tensors: {"y": mtlkit.ops.depthwise_conv2d(**tensors, **options)}, inputs, ("x",))


def _level(dice: _Dice, small: bool) -> tuple[dict[str, Tensor], str]:
    signals, attention = dice.choice(("variance", "alignment")), dice.happens(0.5)
    B, (H, W) = dice.batch(), dice.image(small)
    shape = InteractionShape(B, dice.channels(small or H * W > 200, 2), H, W, dice.randint(2, 20), signals, attention)
    inputs = shape.inputs(torch.float64, seed=dice.randrange(2**31))
    tensors = {"x": inputs.x, "f": inputs.f, **inputs.tim._asdict(), **inputs.upa._asdict()}
    return {name: t for name, t in tensors.items() if t is not None}, signals


def _of(kind: type, tensors: Mapping[str, Tensor]) -> Any:
    return kind(**{name: t for name, t in tensors.items() if name in kind._fields})


def _named(prefix: str, found: Any) -> dict[str, Tensor]:
    named = {name: t for name, t in found._asdict().items() if isinstance(t, Tensor)}
    signals = getattr(found, "stats", None)
    return named | ({f"{prefix}{name}": t for name, t in signals._asdict().items()} if signals else {})


def _running(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds running statistics, which a call in training may update."""
    return tensors | {name: tensors[name].detach().clone() for name in ("norm_mean", "norm_var")}


def _task_interaction(dice: _Dice, small: bool) -> _Shape:
    inputs, signals = _level(dice, small)
    options = {
        "signals": signals,
        "training": dice.happens(0.3) and inputs["x"].shape[0] > 1,
        "return_enhanced": dice.happens(0.5),
        "tau": dice.choice((0.7, 0.7, 0.0, 1.3)),
    }
    if signals == "variance" and dice.happens(0.3):
        inputs["normaliser"] = 0.5 + dice.normal(2).square()

    def function(normaliser: Tensor | None = None, **tensors: Tensor) -> dict[str, Tensor]:
        tensors = _running(tensors)
        tim, upa = _of(TIMParameters, tensors), _of(UPAParameters, tensors)
        normaliser = None if normaliser is None else normaliser.detach()
        out = mtlkit.ops.task_interaction(tensors["x"], tensors["f"], tim, upa, normaliser=normaliser, **options)
        return _named("stats_", out)

    return _Shape(function, inputs, ("x", "f"))


def _tim(dice: _Dice, small: bool) -> _Shape:
    inputs, _ = _level(dice, small)
    inputs = {name: t for name, t in inputs.items() if name in ("x", "f", *TIMParameters._fields)}
    training = dice.happens(0.3) and inputs["x"].shape[0] > 1

    def function(**tensors: Tensor) -> dict[str, Tensor]:
        tensors = _running(tensors)
        return _named("", mtlkit.ops.tim(tensors["x"], tensors["f"], _of(TIMParameters, tensors), training=training))

    return _Shape(function, inputs, ("x", "f"))


def _upa_inputs(dice: _Dice, small: bool) -> tuple[dict[str, Tensor], str]:
    inputs, signals = _level(dice, small)
    inputs = {name: t for name, t in inputs.items() if name in ("x", "f", *UPAParameters._fields)}
    x, f = inputs["x"], inputs["f"]
    gain = 1 + torch.rand(*x.shape[:2], 1, 1, generator=dice.generator, dtype=torch.float64)
    return {"x": x, "x_enhanced": gain * x, "f": f, "f_enhanced": f + dice.normal(*f.shape).abs(), **inputs}, signals


def _upa(dice: _Dice, small: bool) -> _Shape:
    inputs, signals = _upa_inputs(dice, small)

    def function(x: Tensor, x_enhanced: Tensor, f: Tensor, f_enhanced: Tensor, **learnt: Tensor) -> dict[str, Tensor]:
        out = mtlkit.ops.upa(x, x_enhanced, f, f_enhanced, _of(UPAParameters, learnt), signals=signals)
        return {name: t for name, t in _named("stats_", out).items() if not name.startswith("enhanced")}

    return _Shape(function, inputs, ("x", "x_enhanced", "f", "f_enhanced"))


def _upa_stats(dice: _Dice, small: bool) -> _Shape:
    inputs, signals = _upa_inputs(dice, small)
    names = ("x", "x_enhanced", "f", "f_enhanced", "seg_proj", "clf_proj")
    inputs = {name: t for name, t in inputs.items() if name in names}
    return _Shape(
        lambda **tensors: mtlkit.ops.upa_stats(**tensors, signals=signals)._asdict(),
        inputs,
        names[:4],
    )


def _upa_gate(dice: _Dice, small: bool) -> _Shape:
    size = (dice.batch(), *(dice.randint(1, 6) for _ in range(dice.randint(0, 3))))
    inputs = {"base": dice.normal(*size), "enhanced": dice.normal(*size), "weight": dice.normal(size[0]).sigmoid()}
    return _Shape(lambda **tensors: {"y": mtlkit.ops.upa_gate(**tensors)}, inputs, ("base", "enhanced"))


def _tim_pool(dice: _Dice, small: bool) -> _Shape:
    B, C, P = dice.batch(), dice.channels(small), dice.randint(1, 20)
    inputs = {
        "x": dice.normal(B, C, *dice.image(small)),
        "weight": dice.normal(P, C) * C**-0.5,
        "bias": dice.normal(P),
        "attn_weight": dice.normal(C) * C**-0.5,
    }
    inputs = _without(inputs, dice.leave_out(("attn_weight",), 0.5))
    return _Shape(lambda **tensors: {"pooled": mtlkit.ops.tim_pool(**tensors)}, inputs, ("x",))


def _tim_modulate(dice: _Dice, small: bool) -> _Shape:
    B, C = dice.batch(), dice.channels(small)
    inputs = {
        "x": dice.normal(B, C, *dice.image(small)),
        "gate": dice.normal(B, C).sigmoid(),
        "gain": dice.normal(B, C).sigmoid(),
    }
    return _Shape(lambda **tensors: {"y": mtlkit.ops.tim_modulate(**tensors)}, inputs, ("x",))


def _cross(dice: _Dice, small: bool) -> _Shape:
    B, C, (H, W) = dice.batch(), dice.channels(small), dice.image(small)
    if dice.happens(0.5):
        x = dice.normal(B, C, H, W)
        return _Shape(lambda x: {"xs": mtlkit.ops.cross_scan(x)}, {"x": x}, ("x",))
    return _Shape(lambda ys: {"y": mtlkit.ops.cross_merge(ys, H, W)}, {"ys": dice.normal(B, 4, C, H * W)}, ("ys",))


OPERATORS: Mapping[str, tuple[int, Callable[[_Dice, bool], _Shape]]] = {
    "ss2d": (20, _ss2d),
    "ss2d_norm_gate": (12, _ss2d_norm_gate),
    "selective_scan": (20, _selective_scan),
    "directional_scan": (20, _directional_scan),
    "norm_gate": (12, _norm_gate),
    "depthwise_conv2d": (12, _depthwise_conv2d),
    "dwconv_silu": (12, _dwconv_silu),
    "causal_conv1d": (12, _causal_conv1d),
    "task_interaction": (10, _task_interaction),
    "tim": (4, _tim),
    "upa": (4, _upa),
    "upa_stats": (4, _upa_stats),
    "upa_gate": (2, _upa_gate),
    "tim_pool": (6, _tim_pool),
    "tim_modulate": (4, _tim_modulate),
    "cross_scan": (2, _cross),
}

# --- values, memory, gradients ----------------------------------------------------------------------------------------


def _extreme(dice: _Dice, t: Tensor, dtype: torch.dtype, small: bool) -> Tensor:
    """Other values of an argument: huge, tiny, zeros, or in the range where functions saturate."""
    decades = HUGE[dtype]
    kind = dice.choice(("tiny", "zeros") if small else ("scaled", "scaled", "huge", "tiny", "zeros", "shifted"))
    if kind == "scaled":
        return t * 10 ** dice.uniform(-2, 2)
    if kind == "huge":
        return t * 10 ** dice.uniform(2, decades)
    if kind == "tiny":
        return t * 10 ** -dice.uniform(2, decades)
    return torch.zeros_like(t) if kind == "zeros" else t + dice.choice((-30.0, -6.0, 6.0, 30.0))


def _spoilt(dice: _Dice, t: Tensor) -> Tensor:
    """One or a few elements become non-finite."""
    flat = t.flatten().clone()
    for _ in range(dice.choice((1, 1, 3))):
        flat[dice.randrange(len(flat))] = dice.choice((NAN, INF, -INF))
    return flat.view(t.shape)


def _restrided(dice: _Dice) -> Place:
    """The same values with another order, spacing and offset in memory, with NaN in between."""

    def place(t: Tensor) -> Tensor:
        order = dice.sample(range(t.dim()), t.dim())
        spacing = [dice.choice((1, 1, 2, 3)) for _ in order]
        view = t.new_full([t.shape[d] * step + 1 for d, step in zip(order, spacing, strict=True)], NAN)
        for d, step in enumerate(spacing):
            start = dice.randint(0, 1)
            view = view.narrow(d, start, view.shape[d] - 1)[(slice(None),) * d + (slice(None, None, step),)]
        return view.permute([order.index(d) for d in range(t.dim())]).copy_(t)

    return place


def _negative(t: Tensor) -> Tensor:
    """A negated view, like the imaginary part of a conjugate."""
    return torch.complex(torch.zeros_like(t), -t).conj().imag if t.dtype.itemsize >= 4 else torch._neg_view(-t)


def _expanded(dice: _Dice) -> Place:
    """The first element along a dimension, expanded: other values."""

    def place(t: Tensor) -> Tensor:
        d = dice.randrange(t.dim())
        return t.narrow(d, 0, min(1, t.shape[d])).expand_as(t)

    return place


def _zeros(t: Tensor) -> Tensor:
    """A tensor that represents zeros without memory: other values."""
    return torch._efficientzerotensor(t.shape, dtype=t.dtype)


def _place(dice: _Dice, t: Tensor) -> Tensor:
    """The same values at another place in memory."""
    if t.dim() == 0:
        return t
    choices: dict[Callable[[Tensor], Tensor], int] = {
        torch.Tensor.contiguous: 40,
        _restrided(dice): 26,
        part(dice.randrange(t.dim()), dice.randint(0, 3), dice.randint(0, 3)): 10,
        _negative: 6,
        lambda t: _negative(_restrided(dice)(t)): 2,
        _expanded(dice): 4,
        NHWC if t.dim() == 4 else torch.Tensor.contiguous: 11,
        _zeros: 1,
    }
    (place,) = dice.choices(list(choices), list(choices.values()))
    return place(t)


def _weights(dice: _Dice, left_out: float) -> Callable[[str, Tensor], Tensor | None]:
    """Weights of the outputs, the same for every dtype: multiples of 1/64, exact in bfloat16 and float16."""
    seed = dice.randrange(2**31)

    def weights(name: str, output: Tensor) -> Tensor | None:
        own = _Dice(seed + sum(map(ord, name)))
        if own.happens(left_out) and name not in ("y", "out", "seg"):
            return None
        values = torch.randint(-128, 129, output.shape, generator=own.generator).to(output.dtype) / 64
        if own.happens(0.1):
            values = torch.ones((), dtype=output.dtype).expand(output.shape)
        return _place(own, values)

    return weights


def draw(seed: int, backends: tuple[str, ...] = tuple(BACKENDS)) -> Drawn | None:
    """The call for a number; None if its backend is not among these."""
    dice = _Dice(seed)
    (backend,) = dice.choices(list(BACKENDS), list(BACKENDS.values()))
    if backend not in backends:
        return None
    small = backend in OF_GPU
    names = OF_GPU.get(backend, tuple(OPERATORS))
    (operator,) = dice.choices(names, [OPERATORS[name][0] for name in names])
    function, inputs, activations = OPERATORS[operator][1](dice, small)
    dtype = dice.choice([d for d in DTYPES if not small or d != torch.float64])
    parameters = dtype if dice.happens(0.6) or dtype == torch.float64 else torch.float32
    kind = dice.choices(("ordinary", "extreme", "spoilt"), (70, 20, 10))[0]
    whole = [name for name, t in inputs.items() if t.numel()]
    for name in dice.sample(whole, min(len(whole), dice.choice((1, 1, 2)))) if kind != "ordinary" else ():
        # attention's logits keep their values: the kernels' gradients lose as many digits as those have
        logits = "attn_weight" in inputs and name in ("x", "attn_weight")
        inputs[name] = _spoilt(dice, inputs[name]) if kind == "spoilt" else _extreme(dice, inputs[name], dtype, logits)
    if "norm_var" in inputs and kind == "extreme":
        inputs["norm_var"] = inputs["norm_var"].abs()
    tensors = {name: t.to(dtype if name in activations else parameters) for name, t in inputs.items()}
    tensors = {name: _place(dice, t) for name, t in tensors.items()}
    if kind == "spoilt":  # PyTorch computes NaN times such a zero tensor as zero
        tensors = {name: torch.zeros_like(t) if t._is_zerotensor() else t for name, t in tensors.items()}
    trainable = [name for name in tensors if name not in ("norm_mean", "norm_var", "normaliser")]
    frozen = dice.leave_out(tuple(trainable), dice.choice((0, 0, 0, 0.4, 1)))
    return Drawn(
        seed,
        operator,
        function,
        tensors,
        tuple(name for name in trainable if name not in frozen),
        _weights(dice, dice.choice((0, 0, 0.5))),
        backend,
        dice.randint(1, 4),
        dice.choice(_native.C.cpu_isa_levels()) if _native.C and backend == "cpu" else None,
        kind,
    )
