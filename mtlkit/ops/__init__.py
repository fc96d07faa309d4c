"""Operators: plain functions on tensors, each with a reference, a vectorised PyTorch form and compiled kernels."""

from mtlkit.ops._backend import BACKENDS, use_backend
from mtlkit.ops.dwconv_silu import dwconv_silu
from mtlkit.ops.interaction import task_interaction, tim, tim_modulate, tim_pool, upa, upa_gate, upa_stats
from mtlkit.ops.interaction_types import (
    InteractionOutput,
    ThreeSignals,
    TIMOutput,
    TIMParameters,
    UPAParameters,
    VarianceSignals,
)
from mtlkit.ops.norm_gate import norm_gate
from mtlkit.ops.selective_scan import selective_scan
from mtlkit.ops.ss2d import cross_merge, cross_scan, ss2d

__all__ = [
    "BACKENDS",
    "InteractionOutput",
    "TIMOutput",
    "TIMParameters",
    "ThreeSignals",
    "UPAParameters",
    "VarianceSignals",
    "cross_merge",
    "cross_scan",
    "dwconv_silu",
    "norm_gate",
    "selective_scan",
    "ss2d",
    "task_interaction",
    "tim",
    "tim_modulate",
    "tim_pool",
    "upa",
    "upa_gate",
    "upa_stats",
    "use_backend",
]
