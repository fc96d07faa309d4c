"""The share of a network's time by kind of work."""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from mtlkit import _native
from mtlkit.operators.profiling import Call, watching

# kind of work -> prefixes of the names of its events; the first match counts
KINDS = {
    "scan": ("mtlkit::ss2d", "mtlkit::selective_scan"),
    "dwconv_silu": ("mtlkit::dwconv_silu",),
    "norm_gate": ("mtlkit::norm_gate",),
    # on a CPU, projections of an image are convolutions, so that the two cannot be distinguished
    "linear, conv, batch norm": (
        "aten::addmm",
        "aten::mm",
        "aten::bmm",
        "aten::linear",
        "aten::matmul",
        "mkl::",
        "aten::conv",
        "aten::_conv",
        "aten::mkldnn_conv",
        "aten::thnn_conv",
        "aten::slow_conv",
        "aten::_slow_conv",
        "aten::batch_norm",
        "aten::_batch_norm",
        "aten::native_batch_norm",
    ),
}
REST = "rest"


def _recorded(call: Call, run: Callable[[], Any]) -> Any:
    with record_function(f"mtlkit::{call.operator}"):
        return run()


def profile(call: Callable[[], Any], rounds: int = 3) -> dict[str, float] | None:
    """The share of each kind of work in the time of `call`; None without the compiled module."""
    if _native.C is None:
        return None
    with (
        watching(_recorded),
        torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler,
    ):
        for _ in range(rounds):
            with record_function("whole call"):
                call()
    times = dict.fromkeys((*KINDS, REST), 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), REST)
        times[kind] += event.self_cpu_time_total
    total = sum(times.values())
    return {kind: time / total for kind, time in times.items()}
