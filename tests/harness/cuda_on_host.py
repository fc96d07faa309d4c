"""The CUDA kernels compiled for the host and run by the executor of tests/cuda_on_host/."""

import hashlib
import importlib.util
import os
import re
import shlex
import subprocess
import sysconfig
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pybind11
import pytest

from mtlkit import _native
from mtlkit.operators import _backends, _launch

ROOT = Path(__file__).resolve().parents[2]
EXECUTOR = ROOT / "tests" / "cuda_on_host"  # the executor's sources
FOLDER = ROOT / "build" / "cuda_on_host"
COMPILER = shlex.split(os.environ.get("CXX", "c++"))
INCLUDES = [EXECUTOR, pybind11.get_include(), sysconfig.get_path("include")]
FLAGS = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-U_FORTIFY_SOURCE", "-DMTLKIT_CUDA_ON_HOST", "-x", "c++"]
LINK = ["-shared", "-undefined", "dynamic_lookup"] if os.uname().sysname == "Darwin" else ["-shared"]
KEPT = 7 * 24 * 3600  # seconds until built files are deleted


def _run(command: list) -> None:
    process = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert process.returncode == 0, f"{' '.join(map(str, command))}\n{process.stderr}"


def _key(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


def _once(target: Path, make: Callable[[Path], None]) -> Path:
    """Builds `target` unless it exists, completely or not at all, so that two test runs may build at the same time."""
    if not target.exists():
        unfinished = target.with_suffix(f".{os.getpid()}{target.suffix}")
        make(unfinished)
        unfinished.replace(target)
    return target


def _with_includes(source: Path, folders: list[Path]) -> dict[Path, str]:
    """The contents of a source and of everything that it includes from `folders`, by path."""
    texts, todo = {}, [source]
    while todo:
        path = todo.pop()
        texts[path] = path.read_text()
        names = re.findall(r'^#include "(.+)"', texts[path], re.MULTILINE)
        found = (folder / name for name in names for folder in (path.parent, *folders) if (folder / name).exists())
        todo += [p for p in found if p not in texts]
    return texts


def build(name: str, sources: list[Path], csrc: Path = ROOT / "csrc") -> ModuleType:
    """Compiles and loads the module `name`. The result is cached under build/ by a hash of all inputs."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.iterdir():
        if old.stat().st_mtime < time.time() - KEPT:
            old.unlink(missing_ok=True)
    command = [*COMPILER, *FLAGS, f"-I{csrc}", *(f"-I{folder}" for folder in INCLUDES)]
    version = subprocess.run([*COMPILER, "--version"], capture_output=True, text=True, check=True).stdout

    def compiled(source: Path) -> Path:
        texts = _with_includes(source, [csrc, EXECUTOR])
        target = FOLDER / f"{source.stem}-{_key(version, *FLAGS, *INCLUDES, *texts.values())}.o"
        return _once(target, lambda out: _run([*command, "-c", source, "-o", out]))

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    target = FOLDER / f"{name}-{_key(*objects)}.so"
    _once(target, lambda out: _run([*COMPILER, *LINK, "-o", out, *objects]))
    spec = importlib.util.spec_from_file_location(name, target)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_kernels(csrc: Path = ROOT / "csrc") -> ModuleType:
    """The kernels of `csrc`, which may be a modified copy."""
    sources = sorted(p for p in (csrc / "cuda").rglob("*.cu") if p.name != "runtime.cu")  # runtime.cu calls CUDA itself
    module = [csrc / "bindings" / "cuda.cpp", EXECUTOR / "module.cpp", EXECUTOR / "executor.cpp"]
    return build("mtlkit_cuda_on_host", [*sources, *module], csrc)


def build_executor_checks() -> ModuleType:
    """The small kernels of executor_checks.cpp."""
    return build("executor_checks", [EXECUTOR / "executor_checks.cpp", EXECUTOR / "executor.cpp"])


def as_native(kernels: ModuleType) -> SimpleNamespace:
    """mtlkit._C with these kernels; the stream is 0, tensors are on the CPU."""
    return SimpleNamespace(**(vars(_native.C) if _native.C else {}) | vars(kernels) | {"cuda": True})


def serve(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes backend "cuda" accept CPU tensors; returns a function that sets the GPU's size, used to plan launches."""

    def plan_for(multiprocessors: int, shared_bytes: int = 227 << 10) -> None:
        monkeypatch.setattr(_launch, "gpu", lambda device: (multiprocessors, shared_bytes))
        kernels.limit_shared(shared_bytes)

    kernels.seed(0)
    monkeypatch.setattr(_native, "C", as_native(kernels))
    monkeypatch.setattr(_backends, "_cuda_obstacle", lambda device: None)
    plan_for(1)
    return plan_for
