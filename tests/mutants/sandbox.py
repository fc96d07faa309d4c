"""A copy of the sources with a separate environment, in which faults are planted and tests run."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterable, Sequence
from pathlib import Path

from .faults import Fault

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = (".git", ".venv*", "build", "dist", "demo", "*.egg-info", "__pycache__", ".*cache", ".hypothesis", "*.so")
INTERPRETED = "tests/kernels/interpreted"
SECONDS = 900  # maximum for a test run; exceeding it counts as detected
# Imports mtlkit and its kernels from the copy, as an editable install does from a checkout.
FINDER = """
import importlib.util
import sys

FOLDERS = {{"mtlkit": {mtlkit!r}, "mtlkit.kernels": {kernels!r}}}

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in FOLDERS:
            return None
        folder = FOLDERS[name]
        return importlib.util.spec_from_file_location(
            name, folder + "/__init__.py", submodule_search_locations=[folder]
        )

sys.meta_path.insert(0, Finder)
"""
# The copy is built for only one instruction level, this machine's best, so that a fault compiles a file once.
LEVEL = "from mtlkit import _native; print(_native.C.cpu_isa() if _native.C else 'baseline')"
LEVEL_FLAGS = {
    "baseline": "",
    "avx2": "-mavx2 -mfma -mf16c",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512",
}
CPU_SOURCES, CUDA_SOURCES = ("csrc/cpu/", "csrc/common/", "csrc/bindings/"), ("csrc/cuda/", "csrc/common/")
BUILD_CUDA_ON_HOST = "from harness.cuda_on_host import build_kernels; build_kernels()"


class RejectedError(Exception):
    """The build or the collection of tests fails with a fault: the list is wrong, not the tests."""


def runs_of(tests: Iterable[str]) -> list[list[str]]:
    """The arguments of the smallest number of pytest runs for these tests.

    Tests with options run separately, and so do those that need Triton's interpreter.
    """
    together: dict[bool, list[str]] = {}
    alone = []
    for test in tests:
        if " " in test:
            alone.append(shlex.split(test))
        else:
            together.setdefault(test.startswith(INTERPRETED), []).append(test)
    return [*together.values(), *alone]


class Sandbox:
    """The copy; only the parts that the faults need are built.

    Args:
        folder: where to create it; it must not exist.
        faults: those that will be planted.
    """

    def __init__(self, folder: Path, faults: Sequence[Fault]) -> None:
        self.folder, self.build, self._servers = folder, folder / "build" / "mutants", {}
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
        venv.create(folder / ".venv", symlinks=True)
        self.python = folder / ".venv" / "bin" / "python"
        packages = Path(_output(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"))
        beside = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        (packages / "beside.pth").write_text("\n".join(beside))
        finder = FINDER.format(mtlkit=str(folder / "mtlkit"), kernels=str(folder / "kernels"))
        (packages / "_sandbox.py").write_text(finder)
        (packages / "_sandbox.pth").write_text("import _sandbox\n")
        self._configure()
        self._build_module()
        shutil.copytree(self.build, self._sound)
        if any(fault.file.startswith(CUDA_SOURCES) for fault in faults):
            self._build_cuda_on_host()

    @property
    def _sound(self) -> Path:
        """The files built from the sources without a fault."""
        return self.build.with_name("sound")

    # --- running ------------------------------------------------------------------------------------------------------

    def run_tests(self, tests: Iterable[str]) -> str:
        """The first failure that the tests report; empty if all pass."""
        for arguments in runs_of(tests):
            if failure := self._pytest(arguments):
                return failure
        return ""

    def plant(self, fault: Fault) -> str:
        """The failure by which the tests detect a fault, or empty. Restores the copy afterwards.

        Raises:
            RejectedError: the fault does not compile, or its tests cannot be collected.
        """
        path = self.folder / fault.file
        text, stat = path.read_text(encoding="utf-8"), path.stat()
        path.write_text(fault.planted(text), encoding="utf-8")
        try:
            if fault.file.startswith(CPU_SOURCES):
                self._build_module()
            if fault.file.startswith(CUDA_SOURCES):
                self._build_cuda_on_host()
            return self.run_tests(fault.tests)
        finally:
            path.write_text(text, encoding="utf-8")
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            if fault.file.startswith(CPU_SOURCES):
                shutil.rmtree(self.build)
                shutil.copytree(self._sound, self.build)
                self._install()

    def close(self) -> None:
        """Stops its processes."""
        for server in self._servers.values():
            server.communicate()

    def _pytest(self, tests: list[str]) -> str:
        shutil.rmtree(self.folder / ".hypothesis", ignore_errors=True)
        log = self.folder / "build" / "pytest.log"
        arguments = ["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", *tests]
        server = self._server(interpreted=tests[0].startswith(INTERPRETED))
        server.stdin.write(json.dumps([arguments, str(log), SECONDS]) + "\n")
        server.stdin.flush()
        status, output = int(server.stdout.readline()), log.read_text(errors="replace")
        if status in (2, 3, 4, 5):
            raise RejectedError(output[-3000:])
        if status < 0:
            return f"died of {signal.Signals(-status).name}"
        lines = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return (lines or ["failed"])[0] if status else ""

    def _server(self, *, interpreted: bool) -> subprocess.Popen:
        """A process running server.py. Triton decides at import whether it interprets."""
        if interpreted not in self._servers:
            self._servers[interpreted] = subprocess.Popen(
                [self.python, self.folder / "tests" / "mutants" / "server.py"],
                cwd=self.folder,
                env=_environment({"TRITON_INTERPRET": "1"} if interpreted else {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        return self._servers[interpreted]

    # --- building -----------------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        definitions = {
            "Python_EXECUTABLE": self.python,
            "pybind11_DIR": _output(sys.executable, "-m", "pybind11", "--cmakedir"),
            "MTLKIT_OUTPUT_DIR": self.build / "module",
            "MTLKIT_CUDA": "off",
            "MTLKIT_X86_64": "OFF",  # so that there is only one level
            "CMAKE_CXX_FLAGS": LEVEL_FLAGS.get(_output(sys.executable, "-c", LEVEL), ""),
            "CMAKE_BUILD_TYPE": "Debug",
            "CMAKE_CXX_FLAGS_DEBUG": "-O1",
        }
        arguments = [f"-D{name}={value}" for name, value in definitions.items()]
        self._run("cmake", "-S", self.folder, "-B", self.build, "-G", "Ninja", *arguments)

    def _build_module(self) -> None:
        self._run("cmake", "--build", self.build)
        self._install()

    def _build_cuda_on_host(self) -> None:
        self._run(self.python, "-c", BUILD_CUDA_ON_HOST, PYTHONPATH=str(self.folder / "tests"))

    def _install(self) -> None:
        for module in (self.build / "module").glob("_C.*"):
            (self.folder / "mtlkit" / module.name).unlink(missing_ok=True)  # a process may still have it open
            shutil.copy2(module, self.folder / "mtlkit")

    def _run(self, *command: object, **variables: str) -> None:
        process = subprocess.run(
            list(map(str, command)), cwd=self.folder, env=_environment(variables), capture_output=True, text=True
        )
        if process.returncode:
            raise RejectedError((process.stdout + process.stderr)[-3000:])


def _output(*command: object) -> str:
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout.strip()


def _environment(variables: dict[str, str]) -> dict[str, str]:
    """One thread per process, the tools of the running environment first, and no stale bytecode."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("MTLKIT_", "PYTHON"))}
    return ours | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"} | variables
