"""Checks the kernels for GPUs at their first use.

On a GPU, the code that runs may never have been tested: another architecture, another driver that compiles the PTX,
another version of Triton. So the first call of an operator, on each GPU and in each dtype, first makes a small call
and compares its outputs and gradients with the reference on the CPU. A pass is recorded in the user's cache folder, so
that the check runs once per machine; a failure is not recorded, so that the check runs again in every process.

Kernels for the CPU are not checked here, because the machine code that runs is the code that was tested. `mtlkit
doctor` checks them too.
"""

import functools
import hashlib
import os
import platform
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mtlkit
from mtlkit import _native
from mtlkit._accuracy import Accuracy

CHECKED = ("cuda", "triton")  # backends
DRIVERS = ("/proc/driver/nvidia/version", "/sys/module/amdgpu/version")

Key = tuple[str, str, torch.device, torch.dtype]  # operator, backend, GPU, dtype of the first tensor

_passed: set[Key] = set()
_faults: dict[Key, str] = {}
_told: set[Key] = set()
_lock = threading.Lock()
_here = threading.local()


def fault(operator: str, backend: str, tensor: Tensor, asked: bool) -> str | None:
    """Why an operator's kernels failed their check on the GPU of a call; None if they passed.

    Nothing is checked while a graph is traced or captured, nor within a check.

    Args:
        operator: its name in `mtlkit.ops`.
        backend: one of CHECKED.
        tensor: the first tensor of the call.
        asked: whether the backend was requested by name; the caller then raises an error, so no warning is needed.
    """
    if torch.compiler.is_compiling():
        return None
    key = (operator, backend, tensor.device, tensor.dtype)
    if key in _passed:
        return None
    if key not in _faults and _may_check(tensor):
        with _lock:
            if key not in _passed and key not in _faults:
                _check(key)
    words = _faults.get(key)
    if words is None:
        return None
    if not asked and key not in _told:
        _told.add(key)
        warnings.warn(f"{operator}: another backend replaces {backend!r}: {words}", RuntimeWarning, stacklevel=2)
    return words


def apart(call: Callable[[], Any]) -> Any:
    """The result of a call in a new thread, without the modes, autocast and autograd state of this one.

    The new thread uses the current GPU stream of this one.
    """
    found: list[Any] = []
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    def run() -> None:
        _here.checking = True
        try:
            with torch.cuda.stream(stream):
                found.extend((True, call()))
        except BaseException as error:  # whatever a kernel, a compiler or a driver raises
            found.extend((False, error))

    thread = threading.Thread(target=run, name="mtlkit check")
    thread.start()
    thread.join()
    succeeded, result = found
    if succeeded:
        return result
    raise result


def _may_check(tensor: Tensor) -> bool:
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.device.type == "meta":
        return False  # the call is traced
    if torch._C._is_tracing() or getattr(_here, "checking", False):
        return False
    return tensor.device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def _check(key: Key) -> None:
    """Runs the check and records the outcome, unless memory runs out."""
    if _switched_off():
        _passed.add(key)
        return
    note = _note(key)
    if note is None or not _noted(note):
        try:
            faults = apart(lambda: _run(key))
        except torch.OutOfMemoryError:
            return
        except Exception as error:
            faults = [f"{type(error).__name__}: {error}"]
        if faults:
            *_, device, dtype = key
            _faults[key] = (
                f"its kernels failed their first check on {_name(device)} in {dtype} ({faults[0]}); "
                "run `mtlkit doctor` and attach its report to an issue"
            )
            return
        if note is not None:
            _keep(note)
    _passed.add(key)


def _switched_off() -> bool:
    value = os.environ.get("MTLKIT_SELF_CHECK") or "on"
    if value not in ("on", "off"):
        raise ValueError(f"MTLKIT_SELF_CHECK: expected 'on' or 'off', got {value!r}")
    return value == "off"


def _run(key: Key) -> list[str]:
    """What is wrong, in sentences."""
    from mtlkit.operators.samples import compare, first_samples  # they import this module

    operator, backend, device, dtype = key
    wrong = []
    for sample in first_samples(operator):
        given = {name: t.to(device) for name, t in sample.given(dtype).items()}
        if sample.limit(backend, given) is None:
            got = sample.results(backend, given)
            found: dict[str, Accuracy] = compare(got, sample.exact(dtype), sample.plain(dtype))
            wrong += [judged.fault for judged in found.values() if judged.fault]
    return wrong


# --- what has passed on this machine ----------------------------------------------------------------------------------


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"the {device.type}"


def _note(key: Key) -> str | None:
    """Everything that the outcome may depend on, one item per line; None if part of it is unknown."""
    operator, backend, device, dtype = key
    try:
        lines = [
            f"mtlkit {mtlkit.__version__}: {operator}, {backend}, {dtype}",
            f"build {_build()}",
            f"torch {torch.__version__}, CUDA {torch.version.cuda}, HIP {torch.version.hip}",
            f"Python {platform.python_version()}, {platform.platform()}",
            f"GPU {_name(device)}",
        ]
        if device.type == "cuda":
            lines += [str(torch.cuda.get_device_properties(device)), f"driver {_driver()}"]
        if backend == "triton":
            import triton

            lines.append(f"triton {triton.__version__}")
    except Exception:  # a version is missing or unreadable: the check runs in every process
        return None
    return "\n".join(lines) + "\n"


@functools.cache
def _build() -> str:
    """A hash of the compiled module, the sources that call it, and those compiled at run time."""
    import mtlkit.kernels

    found = hashlib.sha256()
    files = [
        path
        for folder in (Path(__file__).parent, *map(Path, mtlkit.kernels.__path__))
        for path in sorted(folder.rglob("*.py"))
    ]
    if file := getattr(_native.C, "__file__", None):
        files.append(Path(file))
    for path in files:
        found.update(path.read_bytes())
    return found.hexdigest()


@functools.cache
def _driver() -> str:
    """The version of the driver; raises an error if it cannot be found."""
    words = [path.read_text().splitlines()[0] for path in map(Path, DRIVERS) if path.exists()]
    return ", ".join(words) or str(torch._C._cuda_getDriverVersion())  # pyright: ignore[reportAttributeAccessIssue] - of builds with CUDA


def _folder() -> Path:
    """The user's cache folder on this operating system."""
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen, "mtlkit")
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or tempfile.gettempdir(), "mtlkit", "cache")
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "mtlkit"


def _file(note: str) -> Path:
    return _folder() / "self_check" / f"{hashlib.sha256(note.encode()).hexdigest()[:32]}.txt"


def _noted(note: str) -> bool:
    """Whether a valid file records the pass; a damaged file does not count."""
    try:
        return _file(note).read_bytes() == note.encode()
    except (OSError, RuntimeError):  # the second: there is no home
        return False


def _keep(note: str) -> None:
    """Writes the file atomically; if that fails, the next process checks again."""
    try:
        path = _file(note)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        try:
            draft.write_bytes(note.encode())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except (OSError, RuntimeError):
        return
