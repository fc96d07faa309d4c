"""Layers: the operators with their parameters, named as in the original networks."""

from mtlkit.nn.adaptive_gate import AdaptiveGate
from mtlkit.nn.attention_gate import AttentionGate
from mtlkit.nn.conv_downsample import ConvDownsample
from mtlkit.nn.conv_stem import ConvStem
from mtlkit.nn.conv_upsample import ConvUpsample
from mtlkit.nn.cross_stage_attention import CrossStageAttention
from mtlkit.nn.drop_path import DropPath
from mtlkit.nn.dual_path_attention import DualPathAttention
from mtlkit.nn.gated_view_fusion import GatedViewFusion
from mtlkit.nn.interaction_level import InteractionLevel
from mtlkit.nn.lesion_views import LesionViews
from mtlkit.nn.mamba import Mamba
from mtlkit.nn.mlp import Mlp
from mtlkit.nn.multi_scale_fusion import MultiScaleFusion
from mtlkit.nn.patch_embed import PatchEmbed
from mtlkit.nn.patch_merging import PatchMerging
from mtlkit.nn.permute import Permute
from mtlkit.nn.residual_block import ResidualBlock
from mtlkit.nn.separable_conv import SeparableConv
from mtlkit.nn.ss2d import SS2D
from mtlkit.nn.ss_conv_ssm import SSConvSSM
from mtlkit.nn.task_interaction import TaskInteraction
from mtlkit.nn.uncertainty_proxy_attention import UncertaintyProxyAttention
from mtlkit.nn.vss_block import VSSBlock

__all__ = [
    "SS2D",
    "AdaptiveGate",
    "AttentionGate",
    "ConvDownsample",
    "ConvStem",
    "ConvUpsample",
    "CrossStageAttention",
    "DropPath",
    "DualPathAttention",
    "GatedViewFusion",
    "InteractionLevel",
    "LesionViews",
    "Mamba",
    "Mlp",
    "MultiScaleFusion",
    "PatchEmbed",
    "PatchMerging",
    "Permute",
    "ResidualBlock",
    "SSConvSSM",
    "SeparableConv",
    "TaskInteraction",
    "UncertaintyProxyAttention",
    "VSSBlock",
]
