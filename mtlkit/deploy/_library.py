"""The libraries for other programs: operators of ONNX Runtime, with sessions that have them, and a C interface."""

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
FACTS, FORMAT = "mtlkit", 1  # the key of a file's metadata, and the version of what they say
_FOLDER = Path(__file__).parent
# CMake's names of modules, which programs load, and of libraries, which they link
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
    """The path of a library for programs without PyTorch; it may be copied to any place, and needs no Python.

    Args:
        kind: "onnxruntime" for the one to register with ONNX Runtime 1.17 or later before it opens a file that
            `mtlkit.export` wrote; "c" for the one with the C interface of mtlkit.h (`include_path`).

    Raises:
        ValueError: there is no such kind.
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
    """The path of the folder with mtlkit.h, the C interface of `library_path("c")`: docs/deploy.md, "From C".

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
    """A session of ONNX Runtime for a file that `mtlkit.export` wrote, on the CPU.

    Args:
        path: the file.
        threads: how many the session has; ONNX Runtime's choice if None.

    Raises:
        DataError: there is no such file, it is damaged, or a later mtlkit has written it.
        FileNotFoundError: mtlkit was installed without its native part.
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
    options.enable_mem_pattern = False  # as fast without, in up to a third less memory, as batches and sizes differ
    missing = None
    try:
        options.register_custom_ops_library(library_path())
    except FileNotFoundError as error:  # files of standard operators alone do without
        missing = error
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of ONNX Runtime's own kinds, which derive from it
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
    """Returns freed memory to the system, where the C library keeps it: weights in their first layout, here."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if trim is not None:
            trim(0)


def facts_of(session: "InferenceSession") -> dict[str, Any]:
    """What `mtlkit.export` has written into the metadata of a session's file.

    Raises:
        DataError: it is damaged.

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
