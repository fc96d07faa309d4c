"""Networks by name: `create_model("medmamba_t", num_classes=2)`."""

from mtlkit.models.baselines import (
    BaselineOptions,
    BaselineOutput,
    MonaiBaseline,
    MonaiBaselineOptions,
    SMPBaseline,
    SMPBaselineOptions,
)
from mtlkit.models.btinet import BTINet, BTINetOptions
from mtlkit.models.card import Origin, Result
from mtlkit.models.costs import Costs, count_costs
from mtlkit.models.csa_moe import CSAMoE, CSAMoEOptions, CSAMoEOutput
from mtlkit.models.encoders import Encoder, list_encoders
from mtlkit.models.hybrid_vssm import HybridVSSM, HybridVSSMOptions, HybridVSSMOutput
from mtlkit.models.image_classifier import ImageClassifier, ImageClassifierOptions, ImageClassifierOutput
from mtlkit.models.keras_names import state_dict_from_keras
from mtlkit.models.mbdi import MBDI, InspectedOutput, InteractionNetOutput, InteractionOptions, MBDIOptions
from mtlkit.models.medmamba import MedMamba, MedMambaOptions
from mtlkit.models.pretrained import Pretrained, from_pretrained
from mtlkit.models.published import LoadReport, load_published
from mtlkit.models.registry import create_model, list_models, register, unregister
from mtlkit.models.vm_unet import VMUNet, VMUNetOptions, VMUNetOutput
from mtlkit.models.vmamba import VMamba, VMambaOptions

__all__ = [
    "MBDI",
    "BTINet",
    "BTINetOptions",
    "BaselineOptions",
    "BaselineOutput",
    "CSAMoE",
    "CSAMoEOptions",
    "CSAMoEOutput",
    "Costs",
    "Encoder",
    "HybridVSSM",
    "HybridVSSMOptions",
    "HybridVSSMOutput",
    "ImageClassifier",
    "ImageClassifierOptions",
    "ImageClassifierOutput",
    "InspectedOutput",
    "InteractionNetOutput",
    "InteractionOptions",
    "LoadReport",
    "MBDIOptions",
    "MedMamba",
    "MedMambaOptions",
    "MonaiBaseline",
    "MonaiBaselineOptions",
    "Origin",
    "Pretrained",
    "Result",
    "SMPBaseline",
    "SMPBaselineOptions",
    "VMUNet",
    "VMUNetOptions",
    "VMUNetOutput",
    "VMamba",
    "VMambaOptions",
    "count_costs",
    "create_model",
    "from_pretrained",
    "list_encoders",
    "list_models",
    "load_published",
    "register",
    "state_dict_from_keras",
    "unregister",
]
