"""Peak memory of one call, measured in a process of its own: `python benchmarks/memory.py OP SHAPE DIRECTION PROVIDER`.

Linux tells the highest resident size of a process and lets it be reset, so that what is counted is what the call took
on top of its inputs: results, saved tensors, scratch buffers, and what the allocators hold beside them.
"""

import ctypes
import json
import subprocess
import sys
from pathlib import Path

RESET = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


def resident(field: str) -> int:
    """VmRSS, the resident size now, or VmHWM, its highest, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def give_back() -> None:
    """Returns what the allocator holds of freed memory to the system, lest the call find room that is not counted."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def measure(op: str, shape_name: str, direction: str, provider_name: str) -> int | None:
    """Bytes at the peak of a first call at full size, after one at a small shape that loads libraries and threads."""
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
        give_back()
        try:
            RESET.write_text("5")
        except OSError:
            return None
        before = resident("VmRSS")
        kept = full.run(direction)
        peak = resident("VmHWM") - before
        del kept
    return peak


def peak_memory(op: str, shape_name: str, direction: str, provider_name: str) -> int | None:
    """As `measure`, from a fresh process; None where the system does not tell."""
    if not RESET.exists():
        return None
    command = [sys.executable, __file__, op, shape_name, direction, provider_name]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
