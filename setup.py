"""Build of mtlkit: pure Python plus `mtlkit._C` and the libraries of `mtlkit.deploy`, compiled without a torch header.

Environment: MTLKIT_NATIVE=on|off, MTLKIT_CUDA=auto|on|off, MTLKIT_CUDA_ARCHS="80;90" (README.md, "Settings").
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARIES = ("mtlkit/deploy/lib", "mtlkit/deploy/include")  # for other programs: libraries, and the header of one


def choice(variable: str, *options: str) -> str:
    """The value of an environment variable that takes one of `options`; the first is the default."""
    value = os.environ.get(variable, "").strip().lower() or options[0]
    if value not in options:
        raise SystemExit(f"{variable}={value!r} is unknown: expected {', '.join(options[:-1])} or {options[-1]}.")
    return value


def tool(name: str) -> str:
    """Path of a build tool.

    A virtual environment's own comes first, so that builds with and without isolation share their objects; then PATH,
    where pip's build environment stands in front.
    """
    own = [sysconfig.get_path("scripts")] if sys.prefix != sys.base_prefix else []
    path = shutil.which(name, path=os.pathsep.join([*own, os.environ["PATH"]]))
    if path is None:
        raise SystemExit(f"{name} was not found; without build isolation, first: pip install {name}")
    return path


class CMakeBuild(build_ext):
    """Hands the one extension to CMake; objects stay in build/, so that a second build compiles only what changed."""

    def build_extension(self, ext: Extension) -> None:
        """Configures and builds `ext` where setuptools expects it."""
        import pybind11  # a build requirement of the native module only

        folder = ROOT / "build" / f"cmake-{self.plat_name}-{sys.implementation.cache_tag}"
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        configure = [
            tool("cmake"), "-S", ROOT, "-B", folder, "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DMTLKIT_OUTPUT_DIR={output}",
            f"-DMTLKIT_CUDA={CUDA}",
            f"-DMTLKIT_CUDA_ARCHS={os.environ.get('MTLKIT_CUDA_ARCHS', '')}",
        ]  # fmt: skip
        try:
            subprocess.run(configure, check=True)
            subprocess.run([tool("cmake"), "--build", folder], check=True)
        except subprocess.CalledProcessError:
            headers = Path(sysconfig.get_path("include"), "Python.h")
            reason = "the reason is above" if headers.is_file() else f"there is no {headers}"
            raise SystemExit(
                f"mtlkit's native module was not built; {reason}.\n"
                "It needs a C++17 compiler and Python's headers: apt install g++ python3-dev (Debian, Ubuntu), "
                "dnf install gcc-c++ python3-devel (Fedora), xcode-select --install (macOS).\n"
                "MTLKIT_NATIVE=off installs mtlkit without it, in plain PyTorch: slower."
            ) from None

    def copy_extensions_to_source(self) -> None:
        """For an editable install also copies the libraries for other programs, which CMake built as well."""
        super().copy_extensions_to_source()
        for folder in LIBRARIES:
            shutil.copytree(Path(self.build_lib, folder), ROOT / folder, dirs_exist_ok=True)


NATIVE = choice("MTLKIT_NATIVE", "on", "off")
CUDA = choice("MTLKIT_CUDA", "auto", "on", "off")

setup(
    # `kernels` is another package's import name: the folder is installed as mtlkit.kernels only.
    packages=[
        *find_packages(include=["mtlkit", "mtlkit.*"]),
        *(f"mtlkit.{name}" for name in find_packages(include=["kernels", "kernels.*"])),
    ],
    package_dir={"mtlkit": "mtlkit", "mtlkit.kernels": "kernels"},
    ext_modules=[Extension("mtlkit._C", sources=[])] if NATIVE == "on" else [],
    cmdclass={"build_ext": CMakeBuild},
)
