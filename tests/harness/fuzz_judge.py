"""Decides whether the results of a random call are right: see tests/fuzz.py.

The policy is that of mtlkit.testing, with additions for random values:

- A result may be ill-conditioned, or a sum that cancels. If the policy is not met, two measurements are made: by how
many roundings the exact result moves if the arguments move by one, which multiplies the bound; and the error of plain
PyTorch in the same dtypes on such values, of which twice (gradients: three times) is allowed, as in the policy for 16
bits.
- A result below 10^-8 of the call's largest, less than float32's rounding error of that, may be a difference that
cancels: its error is compared with the largest result.
- Values near the limits of a dtype, NaN and infinities: non-finite elements are compared with those of the formula in
the same dtypes, finite ones with the exact result.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

import mtlkit
from harness.fuzz_draws import Drawn, draw
from harness.matrix import at_level, threads
from mtlkit.testing import FORWARD_BOUND, GRADIENT_BOUND, ROUNDING

Results = dict[str, Tensor]
UNIT = {torch.float64: 2.0**-52, torch.float32: 2.0**-24} | ROUNDING  # one rounding error; in float64, one step
# NaN and inf as in the formula
ELEMENTWISE = (
    "ss2d",
    "ss2d_norm_gate",
    "selective_scan",
    "directional_scan",
    "norm_gate",
    "depthwise_conv2d",
    "dwconv_silu",
    "causal_conv1d",
)
# Values below this lose digits, in the dtype or in float32 during the computation.
LEAST = {torch.float64: 1e-300, torch.float32: 1e-34, torch.bfloat16: 1e-34, torch.float16: 2.0**-22}
VANISHING = 1e-8  # relative to the largest result
MOVES = 4  # number of perturbations to estimate a condition number


class Verdict(NamedTuple):
    """What is wrong, in sentences, and the largest condition number by which a bound was multiplied."""

    wrong: tuple[str, ...] = ()
    condition: float = 1.0


Move = Callable[[Tensor], Tensor]


def results(drawn: Drawn, tensors: dict[str, Tensor], move: Move = lambda t: t) -> Results:
    """Outputs and gradients by name, for these values instead of the call's; `move` changes the loss's weights."""
    leaves = {name: t.detach().requires_grad_(name in drawn.wanted) for name, t in tensors.items()}
    outputs = drawn.function(**leaves)
    found = {name: t.detach() for name, t in outputs.items()}
    pairs = [(t, drawn.weights(name, t)) for name, t in outputs.items() if t.requires_grad]
    pairs = [(t, move(weight)) for t, weight in pairs if weight is not None]
    if not pairs:
        return found
    wanted = [leaves[name] for name in drawn.wanted]
    gradients = torch.autograd.grad([t for t, _ in pairs], wanted, [w for _, w in pairs], allow_unused=True)
    named = zip(drawn.wanted, gradients, wanted, strict=True)
    return found | {f"d{name}": torch.zeros_like(t) if g is None else g for name, g, t in named}


def under_test(drawn: Drawn) -> Results:
    """The results of the call itself."""
    with mtlkit.use_backend(drawn.backend), threads(drawn.threads):
        if drawn.level is None:
            return results(drawn, drawn.tensors)
        with at_level(drawn.level):
            return results(drawn, drawn.tensors)


def _by(backend: str, drawn: Drawn, tensors: dict[str, Tensor], move: Move = lambda t: t) -> Results:
    with mtlkit.use_backend(backend):
        return results(drawn, tensors, move)


def _signs(seed: int) -> Move:
    """Random signs of the loss's weights, so that no gradient is a sum that happens to cancel."""
    generator = torch.Generator().manual_seed(seed)
    return lambda t: t * (2 * torch.randint(0, 2, t.shape, generator=generator) - 1).to(t.dtype)


class Judge:
    """Compares the results of a call.

    Args:
        drawn: the call.
        oracle: the backend that computes the exact results in float64.
    """

    def __init__(self, drawn: Drawn, oracle: str) -> None:
        self.drawn, self.oracle = drawn, "reference" if drawn.kind == "spoilt" else oracle
        self.tensors = {
            name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in drawn.tensors.items()
        }
        self.doubles = {name: t.double() for name, t in self.tensors.items()}
        self.dtype = max((t.dtype for t in drawn.tensors.values()), key=UNIT.__getitem__)  # the least precise one
        self.exact = _by(self.oracle, drawn, self.doubles)
        self.plain: Results | None = None
        if self.dtype in ROUNDING or drawn.kind != "ordinary":
            self.plain = _by("reference" if drawn.kind == "spoilt" else "torch", drawn, self.tensors)
        self.worst = 1.0

    def wrong(self, got: Results) -> Iterator[str]:
        """What is wrong with the results, one sentence each."""
        if got.keys() != self.exact.keys():
            yield f"expected {', '.join(self.exact)}, got {', '.join(got)}"
            return
        for name, value in got.items():
            exact = self.exact[name]
            if value.shape != exact.shape:
                yield f"{name}: expected shape {tuple(exact.shape)}, got {tuple(value.shape)}"
            elif value.numel():
                yield from self._wrong_values(name, value.double(), value.dtype)
        spoilt = any(t.isnan().any() for t in self.tensors.values())  # an infinity may have a finite limit
        if spoilt and self._finite(got) and not self._finite(self.exact):
            yield "finite, all of it, where the formula is not"

    def _is_gradient(self, name: str) -> bool:
        return name.startswith("d") and name[1:] in self.drawn.tensors

    def _finite(self, found: Results) -> bool:
        """Whether all outputs are finite."""
        return all(t.isfinite().all() for name, t in found.items() if not self._is_gradient(name))

    def _wrong_values(self, name: str, value: Tensor, dtype: torch.dtype) -> Iterator[str]:
        exact, plain = self.exact[name], None if self.plain is None else self.plain[name].double()
        gradient = self._is_gradient(name)
        within = exact.abs() <= 0.9 * torch.finfo(dtype).max  # false for NaN
        sound = within if plain is None else within & plain.isfinite()
        yield from self._wrong_places(name, value, plain, sound, gradient)
        both = sound & value.isfinite()
        error, scale = self._distance(value, exact, both), exact[both].norm().item()
        bound, unit = self._bound(name, dtype, both, scale, gradient)
        largest = max(t[t.isfinite()].abs().sum().item() for t in self.exact.values())  # may multiply small values
        least = both.sum().sqrt().item() * LEAST[dtype] * max(1.0, largest)
        if scale <= VANISHING * largest:
            least = max(least, bound * largest)
        if error <= bound * scale + least:
            return
        condition, noise = self._sensitivity(name, both)
        self.worst = max(self.worst, condition)
        if error > bound * scale + max(0.0, condition - 1) * unit * scale + (3 if gradient else 2) * noise + least:
            found = f"relative error {error / scale if scale else error:.2e} is beyond {bound:.2e}"
            plain = f"PyTorch's {noise / scale if scale else noise:.1e}"
            yield f"{name}: {found}, condition number {condition:.1e}, {plain} ({dtype})"

    def _wrong_places(
        self, name: str, value: Tensor, plain: Tensor | None, sound: Tensor, gradient: bool
    ) -> Iterator[str]:
        """Where a result is not finite but should be, or is finite but should not be.

        Which elements of a gradient are NaN depends on how its formula is written, also in PyTorch; near the limits of
        a dtype, so does what overflows.
        """
        formula = self.exact[name].isfinite()
        strict = self.drawn.kind == "spoilt" and self.drawn.backend == "cpu" and self.drawn.operator in ELEMENTWISE
        clear = plain is None or bool(plain.isfinite().all() and sound.all())
        told = strict and not gradient if self.drawn.kind == "spoilt" else clear
        if told and not value[sound].isfinite().all():
            yield f"{name}: not finite where the formula is"
        if strict and not gradient and (value.isfinite() & ~formula & ~plain.isfinite()).any():
            yield f"{name}: finite where the formula is not"

    @staticmethod
    def _distance(a: Tensor, b: Tensor, where: Tensor) -> float:
        return (a[where] - b[where]).norm().item()

    def _bound(self, name: str, dtype: torch.dtype, where: Tensor, scale: float, gradient: bool) -> tuple[float, float]:
        """The policy's bound, and the part of it that a condition number multiplies."""
        narrow = max(dtype, self.dtype, key=UNIT.__getitem__)
        if narrow not in ROUNDING:
            bound = (GRADIENT_BOUND if gradient else FORWARD_BOUND)[narrow]
            return bound, bound
        plain = self._distance(self.plain[name].double(), self.exact[name], where) / (scale or 1.0)
        return (3 if gradient else 2) * plain + ROUNDING[narrow], ROUNDING[narrow]

    def _rounded(self, tensors: dict[str, Tensor]) -> Iterator[tuple[float, dict[str, Tensor]]]:
        """The values in the dtypes of the call and, for float64, also in float32, because both orders of PyTorch's sums
        may happen to round alike; each with its rounding error."""
        yield UNIT[self.dtype], {n: t.to(self.tensors[n].dtype) for n, t in tensors.items()}
        if self.dtype == torch.float64:
            yield UNIT[torch.float32], {n: t.float() for n, t in tensors.items()}

    def _sensitivity(self, name: str, where: Tensor) -> tuple[float, float]:
        """How far the exact result moves, and how far PyTorch's result in the dtypes of the call is from it.

        The first is relative and in units of rounding, with every argument and weight of the loss moved by one; the
        second is the largest distance on the values of these arguments, with other signs of the weights.
        """
        unit, moved, noise = UNIT[self.dtype], 0.0, 0.0
        generator = torch.Generator().manual_seed(self.drawn.seed)
        other = "torch" if self.oracle == "reference" else "reference"

        def move(t: Tensor) -> Tensor:
            return t * (1 + unit * (2 * torch.randint(0, 2, t.shape, generator=generator).double() - 1))

        for number in range(MOVES):
            near = {n: move(t) for n, t in self.doubles.items()}
            exact = _by(self.oracle, self.drawn, near, move)[name]
            moved = max(moved, self._distance(exact, self.exact[name], where))
            for unit_of_held, held in self._rounded(near):
                doubles = {n: t.double() for n, t in held.items()}
                exact = _by(self.oracle, self.drawn, doubles, _signs(number))[name]
                for backend in ("torch", other):
                    value = _by(backend, self.drawn, held, _signs(number))[name].double()
                    error = self._distance(value, exact, where)
                    noise = max(noise, error * unit / unit_of_held if error < float("inf") else 0.0)
        scale = self.exact[name][where].norm().item()
        return moved / (unit * scale) if scale else float("inf"), noise


def verdict(drawn: Drawn, oracle: str = "torch") -> Verdict:
    """Whether a call is right."""
    judge = Judge(drawn, oracle)
    wrong = tuple(judge.wrong(under_test(drawn)))
    return Verdict(wrong, judge.worst)


# --- many calls -------------------------------------------------------------------------------------------------------

SPOT = 50  # every 50th call gets its exact results from the sequential formula
TWICE = 10  # every 10th call is repeated, and must give the same bits


@dataclass
class Tally:
    """Counts calls by operator, backend and kind; collects failures and the worst condition number."""

    operators: Counter[str] = field(default_factory=Counter)
    backends: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    ill: int = 0
    worst: float = 1.0

    def __str__(self) -> str:
        counts = (
            ", ".join(f"{name} {count}" for name, count in sorted(counter.items()))
            for counter in (self.backends, self.kinds, self.operators)
        )
        lines = [f"{self.backends.total()} calls, {len(self.failed)} out of policy", *counts]
        return "\n".join(
            [*lines, f"{self.ill} held to a multiple of the bounds, by condition numbers up to {self.worst:.1e}"]
        )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def fuzz(numbers: Iterable[int], backends: tuple[str, ...], tally: Tally) -> Iterator[int]:
    """Runs and checks the calls of these numbers; yields each number before its call."""
    for number in numbers:
        drawn = draw(number, backends)
        if drawn is None:
            continue
        yield number
        try:
            spot = number % SPOT == 0 or drawn.backend == "torch"
            found = verdict(drawn, "reference" if spot else "torch")
            wrong = found.wrong
            if number % TWICE == 0:
                first, second = under_test(drawn), under_test(drawn)
                differ = [name for name in first if not _same_bits(first[name], second[name])]
                wrong += tuple(f"{name}: other bits" for name in differ)
        except Exception as error:  # any exception of a call is a failure of that call
            found, wrong = Verdict(), (f"{type(error).__name__}: {error}",)
        tally.operators[drawn.operator] += 1
        tally.backends[drawn.backend] += 1
        tally.kinds[drawn.kind] += 1
        tally.ill += found.condition > 1
        tally.worst = max(tally.worst, found.condition)
        if wrong:
            tally.failed.append(f"python -m tests.fuzz --seed {number}   # {drawn}: {'; '.join(wrong)}")
