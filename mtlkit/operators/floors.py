"""A lower bound for the time of a call, from the operations and bytes it needs and the speed of the machine.

The speed of a CPU is measured, that of a GPU comes from its data sheet: nothing here needs a GPU.
"""

import functools
import re
import statistics
import time
from typing import NamedTuple

import torch

from mtlkit import _native

# --- CPU --------------------------------------------------------------------------------------------------------------

# Operations on the multiply-add units, counted in csrc/cpu/scan.h and simd.h, one per vector. Additions, integer #
# operations, shuffles and loads run on other units of most CPUs and are not counted, nor is the sum of dB and dC over #
# the channels, which consists of them.
SERIES = ("series",)
Operations = dict[str, tuple[str, ...]]  # by instruction set
# of exp2_near, and of exp2
TABLE: Operations = {"avx512": ("reduce", *2 * SERIES, "T p"), "avx2": (*3 * SERIES, "T p"), "baseline": 5 * SERIES}
POLYNOMIAL: Operations = {"avx512": ("reduce", *5 * SERIES), "avx2": 5 * SERIES, "baseline": 5 * SERIES}
AROUND = ("dt A", "x B", "h")  # the rest of an update
FORWARD = ("y",)
BACKWARD = ("g", "dC", "dB", "dx", "carry", "q", "ddt", "dA")  # after the states have been recomputed
# Per token and channel, in addition to the polynomials of softplus and of its slope, and the R multiply-adds of the #
# time step. Backward needs those three times: recomputed, for its input and for its weight.
FORWARD_TOKEN = ("|x| log2 e", *8 * ("log1p series",), "p x", "dt u", "D u")
BACKWARD_TOKEN = (*FORWARD_TOKEN[:-1], "1 / (1 + e)", "dx u", "ddt slope", "dx dt", "D dy", "dD")


def multiply_adds(isa: str, table: float, polynomial: float) -> float:
    """Vector operations per second and lane that the multiply-add units execute: the larger of two measurements."""
    around = len(AROUND) + len(FORWARD)
    return max(table * (len(TABLE[isa]) + around), polynomial * (len(POLYNOMIAL[isa]) + around))


def scan_operations(isa: str, states: int, rank: int, backward: bool) -> float:
    """Operations per state update, including its share of the work per token; with `backward`, of both passes.

    Args:
        isa: instruction-set level of the code.
        states: N.
        rank: rank of the time step's projection; 0 if the scan gets time steps directly.
        backward: whether gradients are computed too.
    """
    update = len(TABLE[isa]) + len(AROUND)
    exp2 = len(POLYNOMIAL[isa])
    operations = update + len(FORWARD) + (exp2 + len(FORWARD_TOKEN) + rank) / states
    if backward:
        operations += update + len(BACKWARD) + (exp2 + len(BACKWARD_TOKEN) + 3 * rank) / states
    return operations


def yardstick(
    runs: int = 9, seconds: float = 0.05, *, threads: int | None = None, polynomial: bool = False
) -> float | None:
    """State updates per second on operands in registers and cache: the median of the runs; None without kernels.

    With `polynomial` the exponential is the polynomial that is valid for any decay: results from before November 2026
    refer to this limit.
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
    """The shortest time in seconds in which this CPU copies data, for a number of bytes read plus written.

    Data that fits the caches is already there, as it may be for an operator.
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

# Throughput of a multiprocessor per clock cycle: exponentials, and instructions of one lane. Forward, every state #
# update needs one exponential and the softplus of every time step two; backward, an update needs at least 24 #
# instructions.
EXPONENTIALS, LANES, OF_SOFTPLUS, BACKWARD_INSTRUCTIONS = 16, 128, 2, 24


class Limits(NamedTuple):
    """Limits of a GPU per second: exponentials, instructions of a lane, and bytes to and from memory."""

    exponentials: float
    instructions: float
    bytes: float


class Floor(NamedTuple):
    """The shortest time in seconds that a call can take, and what limits it."""

    seconds: float
    bound: str


class GPU(NamedTuple):
    """A GPU according to its data sheet; nothing is measured.

    `shared_bytes` is the shared memory per block, `hertz` the boost clock, `bytes` the memory bandwidth per second.
    """

    multiprocessors: int
    shared_bytes: int
    capability: tuple[int, int]
    hertz: float
    bytes: float

    @property
    def limits(self) -> Limits:
        """The limits of its kernels."""
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
    """The GPU with a name as the driver reports it or as in `GPUS`; None if the table does not have it.

    Example:
        >>> from mtlkit.operators.floors import gpu_named
        >>> gpu_named("NVIDIA H200").multiprocessors, gpu_named("RTX 4090").capability, gpu_named("abacus")
        (132, (8, 9), None)
    """
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower().replace("nvidia", "").replace("geforce", "")).strip("_")
    return GPUS.get(plain)


def scan_floor(updates: int, states: int, nbytes: int, backward: bool, limits: Limits) -> Floor:
    """The larger of the arithmetic and the memory floor of a scan.

    Args:
        updates: number of state updates in a forward pass.
        states: N.
        nbytes: number of bytes read and written.
        backward: whether the backward pass follows.
        limits: limits of the GPU.
    """
    arithmetic = updates * (1 + OF_SOFTPLUS / states) / limits.exponentials
    if backward:
        arithmetic += BACKWARD_INSTRUCTIONS * updates / limits.instructions
    memory = memory_floor(nbytes, limits)
    return Floor(arithmetic, "arithmetic") if arithmetic >= memory.seconds else memory


def memory_floor(nbytes: int, limits: Limits) -> Floor:
    """The floor from the bytes that must be read and written."""
    return Floor(nbytes / limits.bytes, "memory")
