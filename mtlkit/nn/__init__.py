"""Layers: the operators with their parameters, named as in the original networks."""

from mtlkit.nn.conv_downsample import ConvDownsample
from mtlkit.nn.conv_stem import ConvStem
from mtlkit.nn.drop_path import DropPath
from mtlkit.nn.mlp import Mlp
from mtlkit.nn.patch_embed import PatchEmbed
from mtlkit.nn.patch_merging import PatchMerging
from mtlkit.nn.permute import Permute
from mtlkit.nn.ss2d import SS2D
from mtlkit.nn.ss_conv_ssm import SSConvSSM
from mtlkit.nn.vss_block import VSSBlock

__all__ = [
    "SS2D",
    "ConvDownsample",
    "ConvStem",
    "DropPath",
    "Mlp",
    "PatchEmbed",
    "PatchMerging",
    "Permute",
    "SSConvSSM",
    "VSSBlock",
]
