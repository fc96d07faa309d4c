"""Measures the rows of a run: checks the result first, then times the call until its median is known well enough."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import machine
import pytest

from mtlkit import _native

Row = dict[str, Any]
OURS = ("mtlkit", "accelerated")  # prefixes of the names of mtlkit's providers

PRECISION = 0.015  # half-width of the median's confidence interval, relative to the median
LEAST_ROUNDS, MOST_ROUNDS = 5, 200
LEAST_SECONDS, MOST_SECONDS = 0.04, 0.2  # total time of a row's rounds, whatever their spread
FEW = 3  # rounds of a call so long that these exceed MOST_SECONDS; a peer's first call is one of them
SLOW = 0.5  # a peer's call that takes longer than this many seconds is timed once
TURNS = 9  # rounds of calls that are timed in turns
UNDISTURBED = 0.85  # least share of the limit that the yardstick reaches on an undisturbed machine
ATTEMPTS, PAUSE = 4, 0.3  # a disturbed row is timed again after so many seconds, unless it takes longer than SLOW
PATIENCE = 8  # after so many disturbed rows in succession, rows are timed once until one is undisturbed


# --- when to stop -----------------------------------------------------------------------------------------------------


def interval(times: list[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the median, from order statistics: it holds for any distribution of the times."""
    ordered, count = sorted(times), len(times)
    below = max(0, math.floor((count - 1.96 * math.sqrt(count)) / 2))
    return ordered[below], ordered[count - 1 - below]


def known(times: list[float], precision: float = PRECISION) -> bool:
    """Whether both ends of the median's interval are within PRECISION of the median."""
    low, high = interval(times)
    median = statistics.median(times)
    return max(high - median, median - low) <= precision * median


def sample(
    call: Callable[[], Any],
    iterations: int = 1,
    *,
    once: bool = False,
    first: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Times a call in rounds until the median is known; returns the seconds of each round.

    Args:
        call: the timed call.
        iterations: calls per round, of which the mean counts; more than 1 for calls of microseconds.
        once: whether a single round is enough if it takes longer than `SLOW`.
        first: the seconds of an earlier call, which counts as a round.
        clock: returns seconds.
    """
    times = [] if first is None else [first]
    while not _enough(times, iterations * sum(times), once):
        start = clock()
        for _ in range(iterations):
            call()
        times.append((clock() - start) / iterations)
    return times


def _enough(times: list[float], spent: float, once: bool) -> bool:
    rounds = len(times)
    if rounds >= MOST_ROUNDS or (spent >= MOST_SECONDS and rounds >= FEW) or (once and rounds and times[0] > SLOW):
        return True
    return rounds >= LEAST_ROUNDS and spent >= LEAST_SECONDS and known(times)


def in_turns(calls: Mapping[str, Callable[[], Any]], rounds: int = TURNS) -> dict[str, list[float]]:
    """Times calls in turns, so that a change of the machine meets all of them; returns the seconds of their rounds.

    An untimed call precedes each timed one, because the others have left their data in the caches.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return times


# --- the rows of a run ------------------------------------------------------------------------------------------------


class Key(NamedTuple):
    """What a row measures, in float32 and NCHW: comparisons find their rows, and `--fast` its tests, by this key."""

    op: str
    shape: str
    direction: str
    provider: str


def key_of(item: pytest.Item) -> Key | None:
    """The key of the row that a test makes.

    It comes from the parameter `case` (a case of workloads.py), or from the test's mark, a function of its parameters:
    `@pytest.mark.row(key=lambda name, provider: Key(name, "busi_224", "inference", provider))`.
    """
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    mark = item.get_closest_marker("row")
    if mark is not None:
        return mark.kwargs["key"](**parameters)
    case = parameters.get("case")
    return case.key if case is not None else None


@dataclass
class Results:
    """The rows of a run, and the machine's yardstick at its start, around every row, and at its end."""

    rows: list[Row] = field(default_factory=list)
    yardsticks: list[float | None] = field(default_factory=list)
    polynomials: list[float | None] = field(default_factory=list)  # polynomial yardstick at the start and the end

    @property
    def limit(self) -> float | None:
        """State updates per second that no scan can exceed here; the maximum, as noise only lowers a measurement."""
        return max((y for y in self.yardsticks if y), default=None)

    def disturbed(self, last: int = 0) -> list[Row]:
        """The rows, or the `last` rows, around which the yardstick was slow: other programs used the machine."""
        rows = [row for row in self.rows if "yardsticks_updates_per_s" in row][-last:]
        return [row for row in rows if min(row["yardsticks_updates_per_s"]) < UNDISTURBED * self.limit]

    @property
    def attempts(self) -> int:
        """How often a disturbed row is timed: once where the machine stays as it is."""
        return 1 if len(self.disturbed(PATIENCE)) == PATIENCE else ATTEMPTS


def find(rows: list[Row], key: Key) -> Row:
    """The row in float32 and NCHW; raises KeyError if there is none."""
    for row in rows:
        found = (row["op"], row["shape"], row["direction"], row["provider"])
        if found == key and row["dtype"] == "float32" and row.get("layout", "nchw") == "nchw":
            return row
    raise KeyError(key)


class Measure:
    """Checks one call and times it; each use adds one row to the results."""

    def __init__(self, benchmark: Any, results: Results, request: pytest.FixtureRequest, say: Callable) -> None:
        self._benchmark = benchmark
        self._results = results
        self._key = key_of(request.node)
        self._say = say

    def __call__(
        self,
        call: Callable[[], Any],
        check: Callable[[Any], tuple[float, float | None]],
        *,
        unit: tuple[str, float],
        iterations: int = 1,
        compiles: bool = False,
        timed: Callable[[], list[float]] | None = None,
        group: str | None = None,
        op: str | None = None,
        shape: str | None = None,
        direction: str | None = None,
        provider: str | None = None,
        dtype: str = "float32",
        **extra: Any,
    ) -> Row:
        """Times `call` after `check` has accepted its result.

        Args:
            call: the timed call.
            check: takes the first result; raises if it is wrong, else returns its relative and largest absolute error.
            unit: what a call processes, and how many of it: ("updates", 19e6) or ("images", 1).
            iterations: calls per round, of which the mean counts; more than 1 for calls of microseconds.
            compiles: whether the first call compiles, so that its time is meaningless.
            timed: returns the seconds of each round, instead of `sample`.
            group: the rows that this one is compared with; by default made of operator, shape, dtype and direction.
            op, shape, direction, provider: the row's key; by default that of the test's mark.
            dtype: of the values.
            **extra: additional columns.
        """
        given = Key(op, shape, direction, provider)
        key = Key(*(part or marked for part, marked in zip(given, self._key or given, strict=True)))
        layout = f"-{extra['layout']}" if "layout" in extra else ""
        group = group or f"{key.op}-{key.shape}-{dtype}{layout}-{key.direction}"
        peer = not key.provider.startswith(OURS)
        start = time.perf_counter()
        result = call()
        first = time.perf_counter() - start
        relative, absolute = check(result)
        del result
        if self._benchmark.disabled:
            return self._benchmark.pedantic(dict)
        earlier = first if peer and not compiles and FEW * first > MOST_SECONDS else None
        times: list[float] = []
        speeds: list[float] = []
        timed = timed or (lambda: sample(call, iterations, once=peer, first=earlier))
        self._benchmark.group = group
        # a single round of pytest-benchmark, which has no stopping rule: see pytest_benchmark_update_json
        self._benchmark.pedantic(lambda: self._time(timed, times, speeds), rounds=1)
        what, count = unit
        median = statistics.median(times)
        low, high = interval(times)
        row = {
            "group": group,
            **key._asdict(),
            "dtype": dtype,
            "median_s": median,
            "low_s": low,
            "high_s": high,
            "min_s": min(times),
            "max_s": max(times),
            "rounds": len(times),
            f"{what}_per_s": count / median,
            "relative_error": relative,
            **({} if absolute is None else {"max_abs_error": absolute}),
            **({"yardsticks_updates_per_s": speeds} if speeds else {}),
            **extra,
        }
        if speeds and what == "updates":  # relative to the limit measured next to it, because a machine's clock drifts
            row["share_of_limit"] = row["updates_per_s"] / max(speeds)
        self._results.rows.append(row)
        self._benchmark.extra_info.update(row)
        self._say(row)
        return row

    def _time(self, timed: Callable[[], list[float]], times: list[float], speeds: list[float]) -> None:
        """Sets the times of the rounds, and the yardsticks before and after them if this is the run's level."""
        at_full_level = _native.C is not None and _native.C.cpu_isa() == ISA
        for attempt in range(self._results.attempts):
            if attempt:
                time.sleep(PAUSE)
            speeds[:] = [machine.yardstick(3, 0.004)] if at_full_level else []
            start = time.perf_counter()
            times[:] = timed()
            seconds = time.perf_counter() - start
            speeds += [machine.yardstick(3, 0.004)] if at_full_level else []
            self._results.yardsticks += speeds
            if not speeds or seconds > SLOW or min(speeds) >= UNDISTURBED * self._results.limit:
                break


ISA = _native.C.cpu_isa() if _native.C else None  # level of the run; a row may limit its provider to less
