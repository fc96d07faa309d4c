"""The package `mamba_ssm`: the modules of it that mtlkit replaces, and their contents."""

from typing import Any

from torch import Tensor

from mtlkit.compat import _inner, _language_model, _layers
from mtlkit.ops import selective_state_update, use_backend

__all__ = ["MODULES", "THEIRS_FIRST"]


def selective_state_update_ref(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """Computes `selective_state_update` in plain PyTorch."""
    with use_backend("reference"):
        return selective_state_update(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)


_INTERFACE = {
    name: getattr(_inner, name)
    for name in (
        "selective_scan_fn",
        "selective_scan_ref",
        "mamba_inner_fn",
        "mamba_inner_ref",
        "mamba_inner_fn_no_out_proj",
        "bimamba_inner_fn",
        "bimamba_inner_ref",
    )
}
_NORMS: dict[str, Any] = {
    "RMSNorm": _layers.RMSNorm,
    "layer_norm_fn": _layers.layer_norm_fn,
    "rms_norm_fn": _layers.rms_norm_fn,
}
MODULES: dict[str, dict[str, Any]] = {
    "mamba_ssm": {
        "__version__": "1.2.2",
        "Mamba": _layers.Mamba,
        "MambaLMHeadModel": _language_model.MambaLMHeadModel,
        "selective_scan_fn": _inner.selective_scan_fn,
        "mamba_inner_fn": _inner.mamba_inner_fn,
        "bimamba_inner_fn": _inner.bimamba_inner_fn,
    },
    "mamba_ssm.ops.selective_scan_interface": _INTERFACE,
    "mamba_ssm.ops.triton.layer_norm": _NORMS,
    "mamba_ssm.ops.triton.layernorm": _NORMS
    | {"layer_norm_fn": _layers.layer_norm_fn_1, "rms_norm_fn": _layers.rms_norm_fn_1},
    "mamba_ssm.ops.triton.selective_state_update": {
        "selective_state_update": selective_state_update,
        "selective_state_update_ref": selective_state_update_ref,
    },
    "mamba_ssm.modules.mamba_simple": {"Mamba": _layers.Mamba, "Block": _layers.Block},
    "mamba_ssm.models.config_mamba": {"MambaConfig": _language_model.MambaConfig},
    "mamba_ssm.models.mixer_seq_simple": {
        "MambaConfig": _language_model.MambaConfig,
        "MambaLMHeadModel": _language_model.MambaLMHeadModel,
        "MixerModel": _language_model.MixerModel,
        "create_block": _language_model.create_block,
    },
    "mamba_ssm.utils.generation": {
        "GenerationMixin": _language_model.GenerationMixin,
        "InferenceParams": _language_model.InferenceParams,
    },
    "mamba_ssm.utils.hf": {
        "load_config_hf": _language_model.load_config_hf,
        "load_state_dict_hf": _language_model.load_state_dict_hf,
    },
}
# An installed mamba_ssm keeps these: its own version, and a language model that supports more kinds of layers.
THEIRS_FIRST = {
    "mamba_ssm.__version__",
    "mamba_ssm.MambaLMHeadModel",
    "mamba_ssm.models.config_mamba",
    "mamba_ssm.models.mixer_seq_simple",
}
