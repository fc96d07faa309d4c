"""Peak memory of one call, measured in a separate process that does nothing else.

Linux reports the highest resident size of a process and can reset it. The result is therefore what the call needed
beyond its inputs: results, saved tensors, scratch buffers, and overhead of the allocators.
"""

import ctypes
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESET = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def peak_memory(op: str, shape_name: str, direction: str, provider: str) -> int | None:
    """Peak bytes of an operator's call; None if the system does not report it."""
    return _ask("operator", op, shape_name, direction, provider)


def peak_of_training(name: str) -> int | None:
    """Bytes that a training step of a network (networks.py) needs beyond the network; None as above."""
    return _ask("training", name)


@functools.cache
def _process() -> subprocess.Popen:
    """One process for all measurements, because importing torch takes seconds; it ends when its pipe closes.

    With a fixed threshold, the C library returns large blocks at once, so that none is left for the next measurement.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, __file__], env=environment, **pipes)


def _ask(*question: str) -> int | None:
    if not RESET.exists():
        return None
    process = _process()
    print(json.dumps(question), file=process.stdin, flush=True)
    for line in process.stdout:
        if line.startswith("peak "):
            return json.loads(line.removeprefix("peak "))
    raise RuntimeError(f"memory.py ended at {question}")


# --- the process ------------------------------------------------------------------------------------------------------


def resident(field: str) -> int:
    """VmRSS, the current resident size, or VmHWM, its maximum, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def give_back() -> None:
    """Returns freed memory to the system, because memory that the call would reuse would not be counted."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_of(call: Callable[[], Any]) -> int | None:
    give_back()
    try:
        RESET.write_text("5")
    except OSError:
        return None
    before = resident("VmRSS")
    kept = call()
    peak = resident("VmHWM") - before
    del kept
    return peak


def operator(op: str, shape_name: str, direction: str, provider_name: str) -> int | None:
    """Of a first call at full size, after a call at a small shape that loads libraries and starts threads."""
    import torch
    from interaction_workloads import level_problem
    from providers import BY_NAME
    from workloads import problem

    provider, small = BY_NAME[provider_name], "medmamba_t_stage4"
    if op == "task_interaction":
        problem, small = level_problem, "busi_224_level1_batch8"
    with provider.context():
        problem(op, small, torch.float32, provider).run(direction)
        full = problem(op, shape_name, torch.float32, provider)
        return peak_of(lambda: full.run(direction))


def training(name: str) -> int | None:
    """Of a step, after a first step that creates the optimizer's state."""
    import torch
    from networks import given, network, optimizer_of, train

    model, inputs = network(name).train(), given(name, True)
    optimizer = optimizer_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    model.zero_grad()
    return peak_of(lambda: train(model, optimizer, *inputs))


if __name__ == "__main__":
    for question in map(json.loads, sys.stdin):
        kind, *arguments = question
        print("peak", json.dumps({"operator": operator, "training": training}[kind](*arguments)), flush=True)
