"""The least time that a call can take: counts of what the kernels cannot do without, and the speed of a machine.

On a CPU the speed is measured, on a GPU it is that of its data sheet: nothing here needs a GPU.
"""

import functools
import re
import statistics
import time
from typing import NamedTuple

import torch

from mtlkit import _native

# --- CPU --------------------------------------------------------------------------------------------------------------

# Operations on the pipes of the multiply-adds, counted in csrc/cpu/scan.h and simd.h, one a vector. Additions, integer
# operations, shuffles and loads run on other pipes of most CPUs and are left out, as is the folding of dB and dC over
# the channels, which consists of those: the floor is what a scan of this form cannot do without.
SERIES = ("series",)
TABLE = {"avx512": ("reduce", *2 * SERIES, "T p"), "avx2": (*3 * SERIES, "T p"), "baseline": 5 * SERIES}  # exp2_near
POLYNOMIAL = {"avx512": ("reduce", *5 * SERIES), "avx2": 5 * SERIES, "baseline": 5 * SERIES}  # exp2
AROUND = ("dt A", "x B", "h")  # the rest of an update
FORWARD = ("y",)
BACKWARD = ("g", "dC", "dB", "dx", "carry", "q", "ddt", "dA")  # after the states have been rebuilt
# Once for all states of a token and channel, beside the polynomial of softplus and that of its slope, and the R
# multiply-adds of the time step, which backward takes three times: again, for its input and for its weight.
FORWARD_TOKEN = ("|x| log2 e", *8 * ("log1p series",), "p x", "dt u", "D u")
BACKWARD_TOKEN = (*FORWARD_TOKEN[:-1], "x log2 e", "1 / (1 + e)", "dx u", "ddt slope", "dx dt", "D dy", "dD")


def multiply_adds(isa: str, table: float, polynomial: float) -> float:
    """Vector operations a second, by lane, that the pipes of the multiply-adds execute: the more of both yardsticks."""
    around = len(AROUND) + len(FORWARD)
    return max(table * (len(TABLE[isa]) + around), polynomial * (len(POLYNOMIAL[isa]) + around))


def scan_operations(isa: str, states: int, rank: int, backward: bool) -> float:
    """Of a state update, its share of what a token takes once included; forward and backward together if `backward`.

    Args:
        isa: instruction-set level of the code.
        states: N.
        rank: of the projection of the time step; 0 where the scan is given time steps.
        backward: whether gradients are computed, too.
    """
    update = len(TABLE[isa]) + len(AROUND)
    exp2 = len(POLYNOMIAL[isa])
    operations = update + len(FORWARD) + (exp2 + len(FORWARD_TOKEN) + rank) / states
    if backward:
        operations += update + len(BACKWARD) + (2 * exp2 + len(BACKWARD_TOKEN) + 3 * rank) / states
    return operations


def yardstick(
    runs: int = 9, seconds: float = 0.05, *, threads: int | None = None, polynomial: bool = False
) -> float | None:
    """State updates a second on operands in registers and cache: the median of the runs; None without kernels.

    With `polynomial` the exponential is the polynomial that serves any decay: the limit that results from before
    November 2026 refer to.
    """
    if _native.C is None:
        return None
    threads = threads or torch.get_num_threads()
    tokens = max(1, round(_tokens_a_second(_native.C.cpu_isa(), threads) * seconds))
    return statistics.median(_rate(tokens, threads, polynomial) for _ in range(runs))


def _rate(tokens: int, threads: int, polynomial: bool) -> float:
    start = time.perf_counter()
    updates = _native.C.peak_rate(tokens, threads, polynomial)
    return updates / (time.perf_counter() - start)


@functools.cache
def _tokens_a_second(_isa: str, threads: int) -> float:
    tokens = 50_000
    start = time.perf_counter()
    _native.C.peak_rate(tokens, threads, False)
    return tokens / (time.perf_counter() - start)


@functools.lru_cache(maxsize=1024)
def copy_seconds(nbytes: int, runs: int = 5) -> float:
    """The least seconds in which this CPU moves so many bytes, those read and those written together, by a copy.

    What fits its caches is there already, as it may be for an operator.
    """
    source = torch.zeros(max(1, nbytes // 2), dtype=torch.uint8)
    target = torch.empty_like(source)

    def once() -> float:
        start = time.perf_counter()
        target.copy_(source)
        return time.perf_counter() - start

    once()
    return min(once() for _ in range(runs))


# --- GPU --------------------------------------------------------------------------------------------------------------

# What a multiprocessor does in a clock cycle: exponentials, and instructions of one lane. Every state update takes an
# exponential forward, and every time step's softplus two; backward an update takes 24 instructions at least.
EXPONENTIALS, LANES, OF_SOFTPLUS, BACKWARD_INSTRUCTIONS = 16, 128, 2, 24


class Limits(NamedTuple):
    """What bounds a kernel: per second, exponentials, instructions of a lane, and bytes to and from memory."""

    exponentials: float
    instructions: float
    bytes: float


class Floor(NamedTuple):
    """The least seconds that a call can take, and what bounds it."""

    seconds: float
    bound: str


class GPU(NamedTuple):
    """A GPU as its data sheet has it; nothing in it is measured.

    `shared_bytes` are those that a block may have, `hertz` the boost clock, `bytes` those of its memory in a second.
    """

    multiprocessors: int
    shared_bytes: int
    capability: tuple[int, int]
    hertz: float
    bytes: float

    @property
    def limits(self) -> Limits:
        """What bounds its kernels."""
        cycles = self.hertz * self.multiprocessors
        return Limits(EXPONENTIALS * cycles, LANES * cycles, self.bytes)


GPUS = {
    "t4": GPU(40, 65_536, (7, 5), 1.59e9, 0.32e12),
    "a100": GPU(108, 166_912, (8, 0), 1.41e9, 2.039e12),
    "rtx_3090": GPU(82, 101_376, (8, 6), 1.695e9, 0.936e12),
    "rtx_4090": GPU(128, 101_376, (8, 9), 2.52e9, 1.008e12),
    "l40s": GPU(142, 101_376, (8, 9), 2.52e9, 0.864e12),
    "h100": GPU(132, 232_448, (9, 0), 1.98e9, 3.35e12),
    "h200": GPU(132, 232_448, (9, 0), 1.98e9, 4.8e12),
    "b200": GPU(148, 232_448, (10, 0), 1.965e9, 8e12),
    "rtx_5090": GPU(170, 101_376, (12, 0), 2.407e9, 1.792e12),
}


def gpu_named(name: str) -> GPU | None:
    """The GPU of a driver's name or of one in `GPUS`; None where the table does not have it.

    Example:
        >>> from mtlkit.operators.floors import gpu_named
        >>> gpu_named("NVIDIA H200").multiprocessors, gpu_named("RTX 4090").capability, gpu_named("abacus")
        (132, (8, 9), None)
    """
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower().replace("nvidia", "").replace("geforce", "")).strip("_")
    return GPUS.get(plain)


def scan_floor(updates: int, states: int, nbytes: int, backward: bool, limits: Limits) -> Floor:
    """The higher of those of arithmetic and of memory, for state updates and bytes that no scan can do without.

    Args:
        updates: of states, in a forward pass.
        states: N.
        nbytes: that are read and written.
        backward: whether the backward pass follows.
        limits: of the GPU.
    """
    arithmetic = updates * (1 + OF_SOFTPLUS / states) / limits.exponentials
    if backward:
        arithmetic += BACKWARD_INSTRUCTIONS * updates / limits.instructions
    memory = memory_floor(nbytes, limits)
    return Floor(arithmetic, "arithmetic") if arithmetic >= memory.seconds else memory


def memory_floor(nbytes: int, limits: Limits) -> Floor:
    """That of the bytes that must be read and written."""
    return Floor(nbytes / limits.bytes, "memory")
