"""Deployment: networks as ONNX files, the libraries that run them outside PyTorch, and faster copies for PyTorch.

Each name is imported on first use, so that `open_session` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlkit.deploy._calibration import Calibration
    from mtlkit.deploy._export import Exported, export
    from mtlkit.deploy._library import facts_of, include_path, library_path, open_session
    from mtlkit.deploy._optimize import Optimized, optimize

__all__ = [
    "Calibration",
    "Exported",
    "Optimized",
    "export",
    "facts_of",
    "include_path",
    "library_path",
    "open_session",
    "optimize",
]

# public name -> module
_LAZY = {
    "Calibration": "mtlkit.deploy._calibration",
    "Exported": "mtlkit.deploy._export",
    "Optimized": "mtlkit.deploy._optimize",
    "export": "mtlkit.deploy._export",
    "facts_of": "mtlkit.deploy._library",
    "include_path": "mtlkit.deploy._library",
    "library_path": "mtlkit.deploy._library",
    "open_session": "mtlkit.deploy._library",
    "optimize": "mtlkit.deploy._optimize",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _LAZY.keys())
