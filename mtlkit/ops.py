"""Operators: plain functions on tensors, each with a reference, a vectorised PyTorch form and compiled kernels."""

import warnings

from mtlkit.operators import BACKENDS, use_backend
from mtlkit.operators.causal_conv1d import causal_conv1d, causal_conv1d_update
from mtlkit.operators.depthwise_conv2d import depthwise_conv2d
from mtlkit.operators.directional_scan import directional_scan, orders
from mtlkit.operators.dwconv_silu import dwconv_silu
from mtlkit.operators.interaction import task_interaction, tim, tim_modulate, tim_pool, upa, upa_gate, upa_stats
from mtlkit.operators.interaction.types import (
    AlignmentSignals,
    InteractionOutput,
    TIMOutput,
    TIMParameters,
    UPAParameters,
    VarianceSignals,
)
from mtlkit.operators.norm_gate import norm_gate
from mtlkit.operators.residual_norm import layer_norm, rms_norm
from mtlkit.operators.selective_scan import selective_scan
from mtlkit.operators.selective_state_update import selective_state_update
from mtlkit.operators.ss2d import cross_merge, cross_scan, ss2d
from mtlkit.operators.ss2d_norm_gate import ss2d_norm_gate

__all__ = [
    "BACKENDS",
    "AlignmentSignals",
    "InteractionOutput",
    "TIMOutput",
    "TIMParameters",
    "UPAParameters",
    "VarianceSignals",
    "causal_conv1d",
    "causal_conv1d_update",
    "cross_merge",
    "cross_scan",
    "depthwise_conv2d",
    "directional_scan",
    "dwconv_silu",
    "layer_norm",
    "norm_gate",
    "orders",
    "rms_norm",
    "selective_scan",
    "selective_state_update",
    "ss2d",
    "ss2d_norm_gate",
    "task_interaction",
    "tim",
    "tim_modulate",
    "tim_pool",
    "upa",
    "upa_gate",
    "upa_stats",
    "use_backend",
]


def __getattr__(name: str) -> type:
    if name != "ThreeSignals":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn("mtlkit.ops.ThreeSignals is called AlignmentSignals now", DeprecationWarning, stacklevel=2)
    return AlignmentSignals
