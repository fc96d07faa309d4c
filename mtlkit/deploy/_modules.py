"""Layers that are exported as one node, where PyTorch would trace many.

These are levels of task interaction, the last part of residual blocks with multi-scale fusion, and convolutions with
TensorFlow's padding.
"""

import sys
import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from mtlkit import ops
from mtlkit._check import check_channels_first, check_vectors
from mtlkit.nn import DualPathAttention, InteractionLevel, MultiScaleFusion, ResidualBlock
from mtlkit.operators.interaction.types import DIRECTIONS, AlignmentSignals, VarianceSignals

# inputs of the node TaskInteraction (one level), in order
REQUIRED = (
    *("x", "f", "proj_weight", "proj_bias", "norm_mean", "norm_var", "context_weight", "context_bias"),
    *("clf_gate_weight", "clf_gate_bias", "gain_weight", "gain_bias", "seg_gate_weight", "seg_gate_bias"),
    *("norm_weight", "norm_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"),
)
OPTIONAL = ("seg_proj", "clf_proj", "attn", "normaliser")

# inputs of the node GatedResidual (the last part of a residual block), in order
MIXED = ("first", "second", "third", "weights", "bias", "residual")
GATES = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "spatial_weight", "spatial_bias")

_LIBRARY = torch.library.Library("mtlkit_deploy", "DEF")  # these operators are only traced, never run
_TENSORS = ", ".join([*(f"Tensor {name}" for name in REQUIRED), *(f"Tensor? {name}" for name in OPTIONAL)])
_LIBRARY.define(f"task_interaction({_TENSORS}, float tau, float eps) -> ({', '.join(['Tensor'] * 6)})")
_TENSORS = ", ".join([*(f"Tensor {name}" for name in MIXED), *(f"Tensor? {name}" for name in GATES)])
_LIBRARY.define(f"gated_residual({_TENSORS}) -> Tensor")
_LIBRARY.define(
    "conv2d_same(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] dilation, int groups) -> Tensor"
)


@torch.no_grad()
def make_whole(model: nn.Module) -> None:
    """Patches the forward of such layers in place, so that each is traced as one operator."""
    same = getattr(sys.modules.get("timm.layers"), "Conv2dSame", ())
    for module in model.modules():
        if isinstance(module, InteractionLevel) and module.tim.directions == DIRECTIONS:
            shared = type(module).forward is not InteractionLevel.forward  # accelerate's, which returns (map, vector)
            module.forward = types.MethodType(_pair if shared else _level, module)
        elif isinstance(module, ResidualBlock) and isinstance(module.hmsf, MultiScaleFusion):
            _fold_fusion(module.hmsf)
            module.forward = types.MethodType(_residual_block, module)
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
    """Replaces InteractionLevel.forward."""
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


# --- residual blocks --------------------------------------------------------------------------------------------------


@torch.library.register_fake("mtlkit_deploy::gated_residual", lib=_LIBRARY)
def _fake_gated_residual(first: Tensor, *_others: Any) -> Tensor:
    return torch.empty_like(first, memory_format=torch.contiguous_format)


def _fold_fusion(fusion: MultiScaleFusion) -> None:
    """Folds the fusion's last 1 x 1 convolution into those of the three scales, whose weighted sum is its input."""
    last = fusion.fuse.weight.flatten(1).double()  # (C, C)
    for scale in (fusion.sep_d1, fusion.sep_d2, fusion.sep_d4):
        conv = scale.pointwise
        assert conv.bias is not None  # SeparableConv always has one
        conv.weight.copy_((last @ conv.weight.flatten(1).double())[:, :, None, None])
        conv.bias.copy_(last @ conv.bias.double())


def _residual_block(self: ResidualBlock, x: Tensor) -> Tensor:
    """Replaces ResidualBlock.forward in a block whose fusion is folded."""
    check_channels_first("x", x, self.in_dim)
    h = self.bn2(self.conv2(self.bn1(F.relu(self.conv1(x)))))  # (B, dim, H, W)
    fusion: Any = self.hmsf
    alpha = fusion.att_fc2(F.relu(fusion.att_fc1(h.mean((2, 3))))).softmax(-1)  # (B, 3)
    mixed = fusion.sep_d1(h), fusion.sep_d2(h), fusion.sep_d4(h), alpha, fusion.fuse.bias, self.proj(x)
    gates: list[Tensor | None] = [None] * len(GATES)
    if isinstance(self.attn, DualPathAttention):
        layers = self.attn.ch_fc1, self.attn.ch_fc2, self.attn.spatial
        gates = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
    return torch.ops.mtlkit_deploy.gated_residual(*mixed, *gates)


# --- TensorFlow's padding ---------------------------------------------------------------------------------------------


@torch.library.register_fake("mtlkit_deploy::conv2d_same", lib=_LIBRARY)
def _fake_conv2d_same(
    x: Tensor, weight: Tensor, _bias: Tensor | None, stride: list[int], _dilation: list[int], groups: int
) -> Tensor:
    if x.shape[1] != groups * weight.shape[1]:  # so that the tracer knows the number of channels
        raise ValueError(f"x: expected {groups * weight.shape[1]} channels, got {x.shape[1]}")
    sizes = [
        size // step if statically_known_true(size % step == 0) else (size + step - 1) // step
        for size, step in zip(x.shape[2:], stride, strict=True)
    ]
    return x.new_empty(x.shape[0], weight.shape[0], *sizes)


def _conv2d_same(self: nn.Conv2d, x: Tensor) -> Tensor:
    """Replaces Conv2dSame.forward: the output has ceil(size / stride) pixels, and ONNX computes the padding."""
    arguments = x, self.weight, self.bias, list(self.stride), list(self.dilation), self.groups
    return torch.ops.mtlkit_deploy.conv2d_same(*arguments)
