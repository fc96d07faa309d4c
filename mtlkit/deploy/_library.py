"""Paths of the native libraries (operators for ONNX Runtime, C interface), and sessions of ONNX Runtime."""

import ctypes
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mtlkit._extras import check_installed
from mtlkit._files import check_file
from mtlkit._text import printable
from mtlkit.errors import DataError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

DOMAIN, VERSION = "mtlkit", 1  # of the operators
FACTS, FORMAT = "mtlkit", 1  # the key of mtlkit's entry in a file's metadata, and the version of its layout
_FOLDER = Path(__file__).parent
# file names that CMake gives to modules (loaded at run time) and to shared libraries (linked)
_MODULE, _SHARED = {"darwin": ("lib{}.so", "lib{}.dylib"), "win32": ("{}.dll", "{}.dll")}.get(
    sys.platform, ("lib{}.so", "lib{}.so")
)
_LIBRARIES = {"onnxruntime": _MODULE.format("mtlkit_onnxruntime"), "c": _SHARED.format("mtlkit")}


def _installed(path: Path, function: str) -> str:
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: {function}() found nothing there, as mtlkit was installed without its native part; install it "
            "where there is a C++ compiler, without MTLKIT_NATIVE=off"
        )
    return str(path)


def library_path(kind: Literal["onnxruntime", "c"] = "onnxruntime") -> str:
    """Returns the path of a native library, which needs neither Python nor PyTorch and may be copied elsewhere.

    Args:
        kind: "onnxruntime" for the operators that ONNX Runtime 1.17 or later must register before it opens a file of
            `mtlkit.export`; "c" for the C interface of mtlkit.h (see `include_path`).

    Raises:
        ValueError: `kind` is neither.
        FileNotFoundError: mtlkit was installed without its native part.

    Example:
        >>> import onnxruntime
        >>> import mtlkit
        >>> options = onnxruntime.SessionOptions()
        >>> options.register_custom_ops_library(mtlkit.deploy.library_path())
    """
    if kind not in _LIBRARIES:
        raise ValueError(f"kind: expected one of {', '.join(map(repr, _LIBRARIES))}, got {kind!r}")
    return _installed(_FOLDER / "lib" / _LIBRARIES[kind], "mtlkit.deploy.library_path")


def include_path() -> str:
    """Returns the folder that contains mtlkit.h, the C interface of `library_path("c")`; see docs/deploy.md, "From C".

    Raises:
        FileNotFoundError: mtlkit was installed without its native part.

    Example:
        >>> from pathlib import Path
        >>> import mtlkit
        >>> Path(mtlkit.deploy.include_path(), "mtlkit.h").exists()
        True
    """
    return _installed(_FOLDER / "include", "mtlkit.deploy.include_path")


def open_session(path: str | Path, *, threads: int | None = None) -> "InferenceSession":
    """Opens a file that `mtlkit.export` wrote in ONNX Runtime, on the CPU.

    Args:
        path: the file.
        threads: number of threads of the session; None leaves the choice to ONNX Runtime.

    Returns:
        The session, with mtlkit's operators registered.

    Raises:
        DataError: the file does not exist, is damaged, or was written by a later mtlkit.
        FileNotFoundError: the file needs mtlkit's operators, but mtlkit was installed without its native part.
        ImportError: onnxruntime is not installed.

    Example:
        >>> import tempfile, torch
        >>> import mtlkit
        >>> layer = mtlkit.nn.VSSBlock(8).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = mtlkit.export(layer, f"{folder}/net.onnx", example=torch.rand(2, 6, 5, 8))
        ...     session = mtlkit.deploy.open_session(f"{folder}/net.onnx", threads=1)
        >>> session.run(None, {"x": torch.rand(1, 4, 4, 8).numpy()})[0].shape
        (1, 4, 4, 8)
    """
    check_installed("mtlkit.deploy.open_session", "deploy", ("onnxruntime",))
    import onnxruntime

    check_file(Path(path))
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False  # saves up to a third of the memory when sizes differ, at the same speed
    missing = None
    try:
        options.register_custom_ops_library(library_path())
    except FileNotFoundError as error:  # files with only standard operators do not need it
        missing = error
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors derive directly from Exception
        words = printable(str(error).strip().rpartition(" : ")[2])
        if missing is not None and f"{DOMAIN}:" in words:
            raise missing from None
        raise DataError(f"{path}: cannot be opened by ONNX Runtime ({words})") from None
    _give_back_memory()
    facts = facts_of(session)
    for name, what, known in (("operators", "operators", VERSION), ("format", "metadata", FORMAT)):
        version = facts.get(name, known)
        if not isinstance(version, int) or version > known:
            raise DataError(
                f"{path}: expected {what} of version {known} or before, got {version!r}; a later mtlkit wrote it"
            )
    return session


def _give_back_memory() -> None:
    """Returns freed memory to the system: glibc keeps that of the weights which the session has rearranged."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only in glibc
        if trim is not None:
            trim(0)


def facts_of(session: "InferenceSession") -> dict[str, Any]:
    """Returns the entries that `mtlkit.export` wrote into the metadata of a session's file; empty for other files.

    Raises:
        DataError: the metadata are damaged.

    Example:
        >>> import tempfile, mtlkit
        >>> network = mtlkit.models.create_model("medmamba_t", num_classes=2, depths=(1,), dims=(16,))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = mtlkit.export(network, f"{folder}/net.onnx")
        ...     session = mtlkit.deploy.open_session(f"{folder}/net.onnx")
        >>> mtlkit.deploy.facts_of(session)["network"]
        'MedMamba'
    """
    try:
        facts = json.loads(session.get_modelmeta().custom_metadata_map.get(FACTS, "{}"))
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise DataError(f"metadata: expected a JSON object as {FACTS!r}")
    return facts
