"""Networks by name: `create_model("medmamba_t", num_classes=2)`."""

from mtlkit.models._pretrained import from_pretrained
from mtlkit.models._registry import create_model, list_models, register, unregister
from mtlkit.models.encoders import Encoder, list_encoders
from mtlkit.models.keras_names import state_dict_from_keras
from mtlkit.models.medmamba import MedMamba, MedMambaOptions
from mtlkit.models.vmamba import VMamba, VMambaOptions

__all__ = [
    "Encoder",
    "MedMamba",
    "MedMambaOptions",
    "VMamba",
    "VMambaOptions",
    "create_model",
    "from_pretrained",
    "list_encoders",
    "list_models",
    "register",
    "state_dict_from_keras",
    "unregister",
]
