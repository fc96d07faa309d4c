"""Networks by name: `create_model("medmamba_t", num_classes=2)`."""

from mtlkit.models._registry import create_model, list_models, register, unregister
from mtlkit.models.medmamba import MedMamba, MedMambaOptions
from mtlkit.models.vmamba import VMamba, VMambaOptions

__all__ = [
    "MedMamba",
    "MedMambaOptions",
    "VMamba",
    "VMambaOptions",
    "create_model",
    "list_models",
    "register",
    "unregister",
]
