"""Task interaction: the four decoder levels at two input sizes and two batch sizes."""

import pytest
import torch
from interaction_workloads import cases, yardsticks
from memory import peak_memory
from workloads import dtype_name

PEAK = "busi_224_level3_batch8"  # where peak memory is measured too, in a process of its own


@pytest.mark.parametrize("case", cases(), ids=str)
def test_task_interaction(case, measure) -> None:
    w = case.workload
    extra = {"op": w.op, "shape": w.shape_name, "dtype": dtype_name(w.dtype), "direction": w.direction}
    plain = w.dtype == torch.float32 and w.layout == "nchw"
    extra |= {} if w.layout == "nchw" else {"layout": w.layout}
    if w.shape_name == PEAK and plain and case.provider.name != "torch-compile":
        peak = peak_memory(w.op, w.shape_name, w.direction, case.provider.name)
        extra |= {} if peak is None else {"peak_bytes": peak, "map_bytes": case.map_bytes}
    problem = case.problem()
    beside = yardsticks(case, problem)
    floor = beside["copy_s"] * case.bytes / (2 * case.map_bytes)
    with case.provider.context():
        measure(
            lambda: problem.run(w.direction),
            case.check,
            group=case.group,
            provider=case.provider.name,
            unit=("bytes", case.bytes),
            floor_s=floor,
            **beside,
            **extra,
        )
