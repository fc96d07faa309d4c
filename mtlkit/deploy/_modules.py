"""Layers that become one node, where PyTorch would trace many: levels of task interaction, and TensorFlow's padding."""

import sys
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from mtlkit import ops
from mtlkit._check import check_channels_first, check_vectors
from mtlkit.nn import InteractionLevel
from mtlkit.operators.interaction.types import DIRECTIONS, AlignmentSignals, VarianceSignals

# of a level: the tensors of the node TaskInteraction in their order
REQUIRED = (
    *("x", "f", "proj_weight", "proj_bias", "norm_mean", "norm_var", "context_weight", "context_bias"),
    *("clf_gate_weight", "clf_gate_bias", "gain_weight", "gain_bias", "seg_gate_weight", "seg_gate_bias"),
    *("norm_weight", "norm_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"),
)
OPTIONAL = ("seg_proj", "clf_proj", "attn", "normaliser")

_LIBRARY = torch.library.Library("mtlkit_deploy", "DEF")  # operators that are traced, and never run
_TENSORS = ", ".join([*(f"Tensor {name}" for name in REQUIRED), *(f"Tensor? {name}" for name in OPTIONAL)])
_LIBRARY.define(f"task_interaction({_TENSORS}, float tau, float eps) -> ({', '.join(['Tensor'] * 6)})")
_LIBRARY.define(
    "conv2d_same(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] dilation, int groups) -> Tensor"
)


def make_whole(model: nn.Module) -> None:
    """Changes the layers of a model, so that each is traced as one operator."""
    same = getattr(sys.modules.get("timm.layers"), "Conv2dSame", ())
    for module in model.modules():
        if isinstance(module, InteractionLevel) and module.tim.directions == DIRECTIONS:
            shared = type(module).forward is not InteractionLevel.forward  # accelerate's, which gives map and vector
            module.forward = types.MethodType(_pair if shared else _level, module)
        elif isinstance(module, same):
            module.forward = types.MethodType(_conv2d_same, module)


# --- levels -----------------------------------------------------------------------------------------------------------


@torch.library.register_fake("mtlkit_deploy::task_interaction", lib=_LIBRARY)
def _fake_level(x: Tensor, f: Tensor, *others: Any) -> tuple[Tensor, ...]:
    signals = others[REQUIRED.index("fc1_weight") - 2].shape[1]
    batch, channels = x.shape[:2]
    vectors = (f.new_empty(batch, 2), f.new_empty(batch, signals), torch.empty_like(f), f.new_empty(batch, channels))
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(f), *vectors


def _level(
    self: InteractionLevel, seg: Tensor, clf: Tensor, return_enhanced: bool = False, gates: Tensor | None = None
) -> ops.InteractionOutput:
    """As InteractionLevel.forward."""
    if gates is not None:
        return InteractionLevel.forward(self, seg, clf, return_enhanced, gates)
    check_channels_first("seg", seg, self.dim)
    check_vectors("clf", clf, self.clf_dim, seg.shape[0])
    tim, upa = self.tim.operands(), self.upa.operands()
    attn = None if tim.attn_weight is None else tim.attn_weight.flatten()
    named: dict[str, Any] = tim._asdict() | upa._asdict() | {"normaliser": self.upa.means(), "attn": attn}
    named["proj_weight"] = named["proj_weight"].flatten(1)
    given = [named[name] for name in (*REQUIRED[2:], *OPTIONAL)]
    numbers = float(self.tim.tau), float(self.tim.s2c_bn.eps)
    found = torch.ops.mtlkit_deploy.task_interaction(seg, clf, *given, *numbers)
    out, clf_out, weights, signals, enhanced, mu = found
    kind = AlignmentSignals if self.upa.signals == "alignment" else VarianceSignals
    enhanced_seg = seg * mu[:, :, None, None] if return_enhanced else None
    return ops.InteractionOutput(out, clf_out, weights, kind(*signals.unbind(1)), enhanced, enhanced_seg)


def _pair(self: InteractionLevel, seg: Tensor, clf: Tensor) -> tuple[Tensor, Tensor]:
    out = _level(self, seg, clf)
    return out.seg, out.clf


# --- TensorFlow's padding ---------------------------------------------------------------------------------------------


@torch.library.register_fake("mtlkit_deploy::conv2d_same", lib=_LIBRARY)
def _fake_conv2d_same(
    x: Tensor, weight: Tensor, _bias: Tensor | None, stride: list[int], _dilation: list[int], groups: int
) -> Tensor:
    if x.shape[1] != groups * weight.shape[1]:  # so that the tracer knows how many there are
        raise ValueError(f"x: expected {groups * weight.shape[1]} channels, got {x.shape[1]}")
    sizes = [
        size // step if statically_known_true(size % step == 0) else (size + step - 1) // step
        for size, step in zip(x.shape[2:], stride, strict=True)
    ]
    return x.new_empty(x.shape[0], weight.shape[0], *sizes)


def _conv2d_same(self: nn.Conv2d, x: Tensor) -> Tensor:
    """The output has a pixel for each step of the stride, whatever padding that takes: ONNX computes it by itself."""
    arguments = x, self.weight, self.bias, list(self.stride), list(self.dilation), self.groups
    return torch.ops.mtlkit_deploy.conv2d_same(*arguments)
