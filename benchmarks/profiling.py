"""Where a network's time goes, by kind of work."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, record_function

from mtlkit import _native

# kind of work -> how the names of its events begin; the first that fits counts
KINDS = {
    "scan": ("mtlkit::ss2d", "mtlkit::selective_scan"),
    "dwconv_silu": ("mtlkit::dwconv_silu",),
    "norm_gate": ("mtlkit::norm_gate",),
    # the projections of an image are convolutions on a CPU, so that the two cannot be told apart
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


class _Recorded:
    """mtlkit._C with an event of the profiler around each call."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if not callable(value):
            return value

        def recorded(*arguments: Any, **named: Any) -> Any:
            with record_function(f"mtlkit::{name}"):
                return value(*arguments, **named)

        return recorded


def profile(call: Callable[[], Any], rounds: int = 3) -> dict[str, float] | None:
    """The share of each kind of work in the time of `call`; None without the compiled module."""
    if _native.C is None:
        return None
    with (
        patch.object(_native, "C", _Recorded(_native.C)),
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
