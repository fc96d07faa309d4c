"""Builds the libraries for other programs, for this platform and others: `make native-all`.

    python tools/native.py linux-x86_64 linux-aarch64 windows-x86_64

writes them into build/native/PLATFORM/lib, and their header into build/native/PLATFORM/include. It uses Zig's compiler,
from the package ziglang, so that libraries for Linux need only glibc 2.28 or later.
"""

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "native"
# system and processor in CMake's terms, and Zig's target
PLATFORMS = {
    "linux-x86_64": ("Linux", "x86_64", "x86_64-linux-gnu.2.28"),
    "linux-aarch64": ("Linux", "aarch64", "aarch64-linux-gnu.2.28"),
    "windows-x86_64": ("Windows", "x86_64", "x86_64-windows-gnu"),
}
LIBRARIES = ("mtlkit", "mtlkit_onnxruntime")
PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])


def tool(name: str, package: str) -> str:
    """The path of a program in the environment or on PATH."""
    path = shutil.which(name, path=PATH)
    if path is None:
        raise SystemExit(f"{name} was not found; first: pip install {package}")
    return path


def compiler(folder: Path, target: str) -> Path:
    """A program that compiles C++ for one of Zig's targets."""
    try:
        import ziglang
    except ImportError:
        raise SystemExit("Zig's compiler was not found; first: pip install ziglang") from None
    program = folder / "zig-c++"
    zig = Path(ziglang.__file__).parent / "zig"
    words = f'#!/bin/sh\nexec "{zig}" c++ -target {target} "$@"\n'
    if not program.exists() or program.read_text() != words:
        program.write_text(words)
        program.chmod(0o755)
    return program


def build(platform: str, targets: list[str], cxx: str | None, folder: Path) -> None:
    """Builds targets of CMakeLists.txt for a platform in build/native; only one process at a time."""
    system, processor, target = PLATFORMS[platform]
    objects = folder / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    with (objects / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = [
            *(tool("cmake", "cmake"), "-S", ROOT, "-B", objects, "-G", "Ninja", "-DMTLKIT_MODULE=off"),
            *(f"-DCMAKE_MAKE_PROGRAM={tool('ninja', 'ninja')}", f"-DMTLKIT_LIBRARY_DIR={folder}"),
            *(f"-DCMAKE_SYSTEM_NAME={system}", f"-DCMAKE_SYSTEM_PROCESSOR={processor}"),
            f"-DCMAKE_CXX_COMPILER={cxx or compiler(objects, target)}",
            "-DCMAKE_CXX_STANDARD_LIBRARIES=",  # CMake's default for Windows; only the C++ libraries are needed
        ]
        for command in (configure, [tool("cmake", "cmake"), "--build", objects, "--target", *targets]):
            subprocess.run(list(map(str, command)), check=True)
        for stray in (folder / "lib").glob("*.cpp.lib"):  # import libraries that nothing uses
            stray.unlink()


def main() -> int:
    """Builds for the platforms on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("platforms", nargs="+", choices=PLATFORMS, metavar="PLATFORM", help=", ".join(PLATFORMS))
    parser.add_argument(
        "--target", nargs="+", default=LIBRARIES, help="targets of CMakeLists.txt; default: the two libraries"
    )
    parser.add_argument("--cxx", help="compiler to use instead of Zig's")
    parser.add_argument("--folder", type=Path, help="output folder; default: build/native/PLATFORM")
    arguments = parser.parse_args()
    for platform in arguments.platforms:
        folder = (arguments.folder or FOLDER / platform).resolve()
        try:
            build(platform, list(arguments.target), arguments.cxx, folder)
        except subprocess.CalledProcessError:
            raise SystemExit(f"{platform}: was not built; the reason is above") from None
        print(f"{platform}: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
