"""Reports what mtlkit can use on this machine, what it cannot, and why: `python -m mtlkit.info`, or `mtlkit info`.

Include it in bug reports. It is complete even if parts of an installation are broken: without torch, without the
compiled module, or with one that crashes Python at load.
"""

import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import cast

import mtlkit
from mtlkit._streams import READER_GONE, reader_gone

BACKENDS = ("reference", "torch", "cpu", "triton", "cuda")
SETTINGS = (
    "MTLKIT_BACKEND",
    "MTLKIT_CPU_ISA",
    "MTLKIT_CUDA",
    "MTLKIT_CUDA_ARCHS",
    "MTLKIT_NATIVE",
    "MTLKIT_SELF_CHECK",
)
REBUILD = "pip install -e . (in the folder of mtlkit's sources)"

Row = tuple[str, str]


def attempt(probe: Callable[[], str]) -> str:
    """The result of a probe, or its error as text, so that a failing probe does not end the report."""
    try:
        return probe()
    except Exception as error:
        return f"unknown ({type(error).__name__}: {error})"


def load_native() -> tuple[ModuleType | None, str]:
    """Loads `mtlkit._C` after a trial in another process, because a damaged file can crash the process that loads it.

    Returns:
        The module, or None and the reason.
    """
    trial = subprocess.run([sys.executable, "-c", "import mtlkit._C"], capture_output=True, check=False)
    if trial.returncode < 0:
        sys.modules["mtlkit._C"] = cast(ModuleType, None)  # makes every later import of it fail instead of crash
    from mtlkit import _native

    if trial.returncode < 0:
        _native.why_not = f"mtlkit._C crashes Python at load ({signal.Signals(-trial.returncode).name})"
    return _native.C, _native.why_not or ""


def load_torch() -> tuple[ModuleType | None, str]:
    """Imports torch; returns the module, or None and the reason."""
    try:
        import torch
    except Exception as error:  # a broken installation can raise anything
        return None, f"{type(error).__name__}: {error}"
    return torch, ""


def backends(torch_error: str) -> Iterator[tuple[str, bool, str, str]]:
    """Rows (name, active, detail, fix) of all backends."""
    if torch_error:
        for name in BACKENDS:
            yield name, False, "needs torch, which does not import", "pip install torch"
        return
    try:
        from mtlkit.operators import describe

        yield from describe()
    except Exception as error:
        for name in BACKENDS:
            yield name, False, f"mtlkit.ops does not load: {type(error).__name__}: {error}", REBUILD


def version_of(*distributions: str) -> str:
    """Version of the first of these distributions that is installed, read without importing it."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def versions(torch: ModuleType | None, torch_error: str) -> Iterator[Row]:
    """Rows of the software that mtlkit depends on."""
    yield "Python", f"{platform.python_version()}, {sys.executable}"
    yield "platform", platform.platform()
    if torch is None:
        yield "torch", f"{version_of('torch')}; does not import: {torch_error}"
    else:
        cuda = torch.version.cuda
        yield "torch", f"{torch.__version__} ({f'with CUDA {cuda}' if cuda else 'without CUDA'})"
    yield "triton", version_of("triton", "pytorch-triton", "triton-windows")
    yield "numpy", version_of("numpy")


def native(module: ModuleType | None, why_not: str) -> Iterator[Row]:
    """Rows of the compiled module."""
    if module is None:
        yield "state", why_not
        yield "to fix", REBUILD
        return
    yield "file", str(module.__file__)
    yield "compiler", attempt(lambda: module.compiler)
    yield "OpenMP", attempt(lambda: module.openmp() or "none loaded: own threads")
    yield (
        "CUDA",
        attempt(
            lambda: f"toolkit {module.cuda_toolkit}, code for {module.cuda_archs}" if module.cuda else "not compiled in"
        ),
    )
    yield "CPU code", attempt(lambda: f"{module.cpu_isa()} (this CPU runs {', '.join(module.cpu_isa_levels())})")


def cpu_name() -> str:
    """The processor's name as reported by the system."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return subprocess.check_output(["sysctl", "-n", "machdep.cpu.brand_string"], text=True).strip()
    return platform.processor() or platform.machine()


def gpu_name() -> str:
    """Every GPU with its memory and driver, from nvidia-smi."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "none (no nvidia-smi)"
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    if answer.returncode != 0:
        return f"none (nvidia-smi: {answer.stdout.strip() or answer.stderr.strip()})"
    return "; ".join(answer.stdout.strip().splitlines())


def hardware(torch: ModuleType | None) -> Iterator[Row]:
    """Rows of the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "CPU", f"{attempt(cpu_name)}, {cores} cores for this process"
    if torch is not None:
        yield "threads", attempt(lambda: f"{torch.get_num_threads()} (torch.get_num_threads)")
    yield "GPU", attempt(gpu_name)
    if torch is not None:
        yield (
            "GPU in torch",
            attempt(lambda: ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))) or "none"),
        )


def settings() -> Iterator[Row]:
    """Rows of the MTLKIT_* variables that are set."""
    for name in sorted(name for name in os.environ if name.startswith("MTLKIT_")):
        yield name, os.environ[name] + ("" if name in SETTINGS else "  (unknown to mtlkit)")


def report() -> str:
    """The whole report.

    Example:
        >>> from mtlkit.info import report
        >>> print(report())  # doctest: +ELLIPSIS
        mtlkit ...
    """
    torch, torch_error = load_torch()  # first, as in normal use: the compiled module then shares torch's OpenMP
    module, why_not = load_native()
    lines = [f"mtlkit {mtlkit.__version__}, {Path(mtlkit.__file__).parent}", "", "Backends"]
    for fix, group in groupby(backends(torch_error), key=lambda row: row[3]):
        lines += [f"  {name:<10} {'active' if active else '-':<8} {detail}" for name, active, detail, _ in group]
        if fix:
            lines.append(f"{'':<21} to fix: {fix}")
    sections = {
        "Compiled module mtlkit._C": native(module, why_not),
        "Versions": versions(torch, torch_error),
        "Machine": hardware(torch),
        "Variables set": settings(),
    }
    for title, rows in sections.items():
        lines += ["", title, *([f"  {name:<13} {value}" for name, value in rows] or ["  none"])]
    return "\n".join([*lines, "", "To check the kernels on this machine: mtlkit doctor"])


def summary() -> str:
    """Version and active kernels in two lines, without importing torch: what `mtlkit --version` prints.

    Example:
        >>> from mtlkit.info import summary
        >>> print(summary())  # doctest: +ELLIPSIS
        mtlkit ...
        CPU kernels ...; torch ..., Python ...
    """
    module, why_not = load_native()
    if module is None:
        kernels = f"CPU kernels off: {why_not}; CUDA kernels off"
    else:
        cuda = attempt(lambda: f"built for {module.cuda_archs}" if module.cuda else "not built")
        cuda += "" if shutil.which("nvidia-smi") else ", no GPU (no nvidia-smi)"
        kernels = f"CPU kernels {attempt(module.cpu_isa)}; CUDA kernels {cuda}"
    asked = os.environ.get("MTLKIT_BACKEND")
    forced = f"; MTLKIT_BACKEND={asked}" if asked else ""
    versions = f"torch {version_of('torch')}, Python {platform.python_version()}"
    return f"mtlkit {mtlkit.__version__}\n{kernels}{forced}; {versions}"


def main() -> int:
    """Prints the report; returns the exit status 0."""
    print(report())  # noqa: T201 - printing is what this command is for
    return 0


if __name__ == "__main__":
    try:
        status = main()
    except BrokenPipeError:
        status = READER_GONE
    sys.exit(READER_GONE if reader_gone() else status)
