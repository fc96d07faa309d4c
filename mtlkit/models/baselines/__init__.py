"""Networks for comparison, one file per family; `create_model` makes each by its name."""

from mtlkit.models.baselines._base import Baseline, BaselineOptions, BaselineOutput
from mtlkit.models.baselines.densemtl import DenseMTL, DenseMTLOptions
from mtlkit.models.baselines.missformer import MISSFormer, MISSFormerOptions
from mtlkit.models.baselines.monai import MonaiBaseline, MonaiBaselineOptions
from mtlkit.models.baselines.mtan import MTAN, MTANOptions
from mtlkit.models.baselines.mtanet import MTANet, MTANetOptions
from mtlkit.models.baselines.mti_net import MTINet, MTINetOptions
from mtlkit.models.baselines.mtl_oca import MTLOCA, MTLOCAOptions
from mtlkit.models.baselines.smp import SMPBaseline, SMPBaselineOptions
from mtlkit.models.baselines.swin_unet import SwinUNet, SwinUNetOptions
from mtlkit.models.baselines.transunet import TransUNet, TransUNetOptions

__all__ = [
    "MTAN",
    "MTLOCA",
    "Baseline",
    "BaselineOptions",
    "BaselineOutput",
    "DenseMTL",
    "DenseMTLOptions",
    "MISSFormer",
    "MISSFormerOptions",
    "MTANOptions",
    "MTANet",
    "MTANetOptions",
    "MTINet",
    "MTINetOptions",
    "MTLOCAOptions",
    "MonaiBaseline",
    "MonaiBaselineOptions",
    "SMPBaseline",
    "SMPBaselineOptions",
    "SwinUNet",
    "SwinUNetOptions",
    "TransUNet",
    "TransUNetOptions",
]
