"""Calls that `mtlkit bench` times: operators and a network, on mtlkit's kernels and on plain PyTorch.

Each call is checked before it is timed: operators by the policy of `mtlkit.testing` against the sequential reference in
float64, a network's logits against plain PyTorch in float64.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import mtlkit
from mtlkit import ops
from mtlkit.models.network import takes
from mtlkit.testing import (
    INTERACTION_SHAPES,
    SS2D_SHAPES,
    SelectiveScanShape,
    assert_accurate,
    relative_error,
)

BACKENDS = {"mtlkit": "auto", "torch": "torch"}
FORWARD, BOTH = "forward", "and backward"
# Each operator meets the bounds of mtlkit.testing; some sixty layers of float32 in a row add up to more.
LOGITS_BOUND = 1e-5
LEAST_ROUNDS, MOST_ROUNDS = 3, 200


class Call(NamedTuple):
    """A call, and what gradients are taken of."""

    run: Callable[..., Tensor]
    tensors: dict[str, Tensor]

    def results(self, direction: str) -> dict[str, Tensor]:
        """The output, and with the backward pass every gradient, by name."""
        if direction == FORWARD:
            with torch.no_grad():
                return {"output": self.run(**self.tensors)}
        output = self.run(**self.tensors)
        weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
        gradients = torch.autograd.grad(output, list(self.tensors.values()), weights)
        return {"output": output.detach(), **dict(zip(self.tensors, gradients, strict=True))}


@dataclass(frozen=True)
class Row:
    """What was measured: median seconds by backend, and the largest relative error of mtlkit's results."""

    what: str
    shape: str
    direction: str
    relative_error: float
    seconds: Mapping[str, float]

    @property
    def ratio(self) -> float:
        """How many times as fast as plain PyTorch."""
        return self.seconds["torch"] / self.seconds["mtlkit"]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "what": self.what,
            "shape": self.shape,
            "direction": self.direction,
            **{f"{name}_s": seconds for name, seconds in self.seconds.items()},
            "ratio": self.ratio,
            "relative_error": self.relative_error,
        }


# --- operators --------------------------------------------------------------------------------------------------------


def _interaction(signals: str, x: Tensor, f: Tensor, **tensors: Tensor) -> Tensor:
    """A level's final map and vector side by side."""
    tim = ops.TIMParameters._make(map(tensors.get, ops.TIMParameters._fields))
    upa = ops.UPAParameters._make(map(tensors.get, ops.UPAParameters._fields))
    out = ops.task_interaction(x, f, tim, upa, signals=signals)
    return torch.cat([out.seg.flatten(1), out.clf], 1)


def operators(quick: bool, dtype: torch.dtype, device: str) -> Iterator[tuple[str, str, Call]]:
    """Name, shape and call of each operator: a stage of MedMamba and a decoder level, with `quick` small ones."""
    name = f"medmamba_t_stage{4 if quick else 1}"
    s = SS2D_SHAPES[name]
    where = {"dtype": dtype, "device": device, "requires_grad": True}
    size = f"{s.D} x {s.H} x {s.W}"
    yield "ss2d", size, Call(ops.ss2d, s.inputs(**where))

    flat = SelectiveScanShape(s.B, s.D, s.H * s.W, s.N)
    yield (
        "selective_scan",
        f"{flat.D} x {flat.L}",
        Call(lambda **t: ops.selective_scan(**t, delta_softplus=True), flat.inputs(**where)),
    )

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()

    x = normal(s.B, s.H, s.W, s.D)
    filters = {"x": x, "weight": normal(s.D, 1, 3, 3), "bias": normal(s.D)}
    yield "dwconv_silu", size, Call(lambda x, **t: ops.dwconv_silu(x.permute(0, 3, 1, 2), **t), filters)
    norm = {"x": x, "weight": normal(s.D), "bias": normal(s.D), "z": normal(s.B, s.H, s.W, s.D)}
    yield "norm_gate", size, Call(ops.norm_gate, norm)

    level = INTERACTION_SHAPES[f"busi_224_level{1 if quick else 3}_batch8"]
    given = level.inputs(**where)
    tensors = given.named_tensors()
    fixed = {name: getattr(given.tim, name) for name in ("norm_mean", "norm_var")}
    yield (
        "task_interaction",
        f"8 x {level.C} x {level.H} x {level.W}",
        Call(lambda **t: _interaction(level.signals, **t, **fixed), tensors),
    )


# --- networks ---------------------------------------------------------------------------------------------------------


def network(name: str, dtype: torch.dtype, device: str, quick: bool) -> tuple[nn.Module, tuple[Tensor, ...], str]:
    """A network by name with fresh weights, what it is called with, and the size of that in words."""
    torch.manual_seed(0)
    model = mtlkit.models.create_model(name).to(device, dtype).eval()
    size = 64 if quick else 224
    inputs = inputs_of(model, size, 1, dtype, device)
    return model, inputs, f"{'4 views' if inputs[0].dim() == 5 else '1 image'}, {size} x {size}"


def inputs_of(model: nn.Module, size: int, batch: int, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """What a network is called with: random square images, or exams of four views, and masks if it takes them."""
    channels, taken = getattr(model.options, "in_chans", 3), takes(model)
    shape = (batch, *((4,) if "views" in taken else ()), channels, size, size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device, dtype)
    if "masks" not in taken:
        return (images,)
    masks = torch.zeros(batch, 1, size, size, device=device)
    masks[..., size // 3 : 2 * size // 3, size // 4 : size // 2] = 1
    return images, masks


def logits(output: Any) -> Tensor:
    """All logits of a network's output, side by side."""
    outputs = {"logits": output} if isinstance(output, Tensor) else output._asdict()
    found = [value.flatten(1) for name, value in outputs.items() if name.endswith("logits") and value is not None]
    return torch.cat(found, 1)


# --- measuring --------------------------------------------------------------------------------------------------------


def medians(calls: Mapping[str, Callable[[], Any]], seconds: float, device: str) -> dict[str, float]:
    """Median seconds of each call, taken in turns, so that what disturbs the machine disturbs all alike."""

    def once(call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    first = {name: once(call) for name, call in calls.items()}
    rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, int(seconds / max(1e-6, sum(first.values())))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(once(call))
    return {name: statistics.median(values) for name, values in times.items()}


def _on(backend: str, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with mtlkit.use_backend(backend):
            return call()

    return run


def measure_operators(quick: bool, seconds: float, device: str) -> Iterator[Row]:
    """Rows of the operators, forward and with the backward pass; raises an AssertionError where a result is wrong."""
    exact_calls = operators(quick, torch.float64, device)
    for (what, shape, call), (_, _, exact_call) in zip(
        operators(quick, torch.float32, device), exact_calls, strict=True
    ):
        with mtlkit.use_backend("reference"):
            exact = exact_call.results(BOTH)
        for direction in (FORWARD, BOTH):
            errors = {}
            for name, backend in BACKENDS.items():
                results = _on(backend, lambda c=call, d=direction: c.results(d))()
                errors[name] = max(
                    assert_accurate(f"{what}, {name}: {key}", got, exact[key], gradient=key != "output")
                    for key, got in results.items()
                )
            calls = {n: _on(b, lambda c=call, d=direction: c.results(d)) for n, b in BACKENDS.items()}
            yield Row(what, shape, direction, errors["mtlkit"], medians(calls, seconds, device))


def measure_network(name: str, quick: bool, seconds: float, device: str) -> Iterator[Row]:
    """Rows of a network: inference, and without `quick` a training step of two images."""
    model, inputs, words = network(name, torch.float64, device, quick)
    with torch.no_grad(), mtlkit.use_backend("torch"):
        exact = logits(model(*inputs))
    model, inputs, words = network(name, torch.float32, device, quick)

    def infer() -> Tensor:
        with torch.no_grad():
            return logits(model(*inputs))

    calls = {n: _on(backend, infer) for n, backend in BACKENDS.items()}
    for n, call in calls.items():
        error = relative_error(call(), exact)
        assert error <= LOGITS_BOUND, (
            f"{name}, {n}: the logits' relative error {error:.1e} is beyond {LOGITS_BOUND:.0e}"
        )
    error = relative_error(calls["mtlkit"](), exact)
    yield Row(name, words, "inference", error, medians(calls, seconds, device))
    if quick:
        return

    pair = tuple(torch.cat([t, t.flip(-1)]) for t in inputs)
    model.train()

    def step() -> None:
        model.zero_grad()
        logits(model(*pair)).square().mean().backward()

    calls = {n: _on(backend, step) for n, backend in BACKENDS.items()}
    yield Row(
        name,
        words if words.startswith("4") else words.replace("1 image", "2 images"),
        BOTH,
        error,
        medians(calls, seconds, device),
    )
