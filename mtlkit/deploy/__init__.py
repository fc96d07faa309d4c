"""Out of PyTorch: networks as ONNX files, and the libraries that serve them to other programs."""

from mtlkit.deploy._export import Exported, export
from mtlkit.deploy._library import facts_of, include_path, library_path, open_session
from mtlkit.deploy._optimize import Optimized, optimize

__all__ = ["Exported", "Optimized", "export", "facts_of", "include_path", "library_path", "open_session", "optimize"]
