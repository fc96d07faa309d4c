"""Fused selective scans and task interaction for multi-task vision networks, on CPU and GPU.

>>> import torch, mtlkit
>>> layer = mtlkit.nn.SS2D(d_model=96)
>>> y = layer(torch.rand(2, 14, 14, 96))  # (B, H, W, C) in and out
>>> y.shape
torch.Size([2, 14, 14, 96])

Everything is loaded on first use, so that `python -m mtlkit.info` runs even where torch does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlkit import data, losses, metrics, models, nn, ops, training
    from mtlkit.ops._backend import use_backend
    from mtlkit.ops.selective_scan import selective_scan as selective_scan_fn

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "accelerate",
    "compat",
    "data",
    "losses",
    "metrics",
    "models",
    "nn",
    "ops",
    "restore",
    "selective_scan_fn",
    "training",
    "use_backend",
]

# public name -> (module, attribute); without an attribute the module itself
_LAZY: dict[str, tuple[str, str | None]] = {
    "accelerate": ("mtlkit._accelerate", "accelerate"),
    "compat": ("mtlkit.compat", None),
    "data": ("mtlkit.data", None),
    "losses": ("mtlkit.losses", None),
    "metrics": ("mtlkit.metrics", None),
    "models": ("mtlkit.models", None),
    "nn": ("mtlkit.nn", None),
    "ops": ("mtlkit.ops", None),
    "restore": ("mtlkit._accelerate", "restore"),
    "selective_scan_fn": ("mtlkit.ops.selective_scan", "selective_scan"),
    "training": ("mtlkit.training", None),
    "use_backend": ("mtlkit.ops._backend", "use_backend"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module_name, attribute = _LAZY[name]
    module = import_module(module_name)
    value = globals()[name] = module if attribute is None else getattr(module, attribute)
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _LAZY.keys())
