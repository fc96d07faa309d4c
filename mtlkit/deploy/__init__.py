"""Out of PyTorch: networks as ONNX files, and the library with which ONNX Runtime runs them."""

from mtlkit.deploy._export import Exported, export
from mtlkit.deploy._library import facts_of, library_path, open_session

__all__ = ["Exported", "export", "facts_of", "library_path", "open_session"]
