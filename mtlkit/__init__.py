"""Fused selective scans and task interaction for multi-task vision networks, on CPU and GPU.

>>> import torch, mtlkit
>>> layer = mtlkit.nn.SS2D(d_model=96)
>>> y = layer(torch.rand(2, 14, 14, 96))  # (B, H, W, C) in and out
>>> y.shape
torch.Size([2, 14, 14, 96])

Modules are imported on first use, so that `python -m mtlkit.info` also runs if torch cannot be imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlkit import (
        compat,
        data,
        deploy,
        errors,
        evaluation,
        inference,
        info,
        losses,
        metrics,
        models,
        nn,
        ops,
        testing,
        training,
    )
    from mtlkit._accelerate import accelerate, restore
    from mtlkit.deploy import export, optimize
    from mtlkit.ops import selective_scan as selective_scan_fn
    from mtlkit.ops import use_backend

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "accelerate",
    "compat",
    "data",
    "deploy",
    "errors",
    "evaluation",
    "export",
    "inference",
    "info",
    "losses",
    "metrics",
    "models",
    "nn",
    "ops",
    "optimize",
    "restore",
    "selective_scan_fn",
    "testing",
    "training",
    "use_backend",
]

# public subpackages and modules
_MODULES = (
    "compat",
    "data",
    "deploy",
    "errors",
    "evaluation",
    "inference",
    "info",
    "losses",
    "metrics",
    "models",
    "nn",
    "ops",
    "testing",
    "training",
)

# public name -> (module that defines it, its name there)
_NAMES = {
    "accelerate": ("mtlkit._accelerate", "accelerate"),
    "export": ("mtlkit.deploy", "export"),
    "optimize": ("mtlkit.deploy", "optimize"),
    "restore": ("mtlkit._accelerate", "restore"),
    "selective_scan_fn": ("mtlkit.ops", "selective_scan"),
    "use_backend": ("mtlkit.ops", "use_backend"),
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"mtlkit.{name}")
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _NAMES[name]
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _NAMES.keys() | set(_MODULES))
