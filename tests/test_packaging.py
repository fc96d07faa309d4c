"""What users get: the source archive, the wheel built from it, and the message if a build is impossible."""

import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import mtlkit

# Like a user's environment, but without CUDA, which takes time; tests/cuda/test_compile.py checks it.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("MTLKIT_")}
ENVIRONMENT["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
ENVIRONMENT["MTLKIT_CUDA"] = "off"
QUICK = {"CMAKE_BUILD_TYPE": "None", "CXXFLAGS": "-O0"}  # because optimising takes minutes

NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc")
PIP = [sys.executable, "-m", "pip"]
WHEEL = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--verbose", "."]


def run(command: list, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = ENVIRONMENT | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def install(wheel: Path, folder: Path) -> Path:
    """Unpacks `wheel` with pip into `folder`, from which Python can import it."""
    process = run([*PIP, "install", "--no-deps", "--no-index", "--target", folder, wheel], folder)
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="module")
def files(root) -> list[str]:
    """The files of the project, from git."""
    listing = run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], root)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in listing.stdout.splitlines() if (root / name).is_file()]


@pytest.fixture(scope="module")
def tree(files, root, tmp_path_factory) -> Path:
    """A copy of the project without build files."""
    folder = tmp_path_factory.mktemp("tree")
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def source_archive(tree, tmp_path_factory) -> Path:
    """The unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    script = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    process = run([sys.executable, "-c", script], tree)
    assert process.returncode == 0, process.stderr
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder)
    return folder / f"mtlkit-{mtlkit.__version__}"


@pytest.fixture(scope="module")
def wheel(source_archive) -> Path:
    process = run(WHEEL, source_archive, **QUICK)
    assert process.returncode == 0, process.stdout + process.stderr
    (path,) = source_archive.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def pure_wheel(tree) -> Path:
    process = run(WHEEL, tree, MTLKIT_NATIVE="off")
    assert process.returncode == 0, process.stdout + process.stderr
    (path,) = tree.glob("*.whl")
    return path


def test_source_archive_is_complete(source_archive, files):
    needed = [name for name in files if name.startswith(("csrc/", "kernels/", "mtlkit/"))]
    assert "csrc/bindings/module.cpp" in needed
    missing = [name for name in [*needed, "CMakeLists.txt", "LICENSE"] if not (source_archive / name).is_file()]
    assert not missing


def test_wheel_content(wheel, files):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"mtlkit", f"mtlkit-{mtlkit.__version__}.dist-info"}
    expected = {name for name in files if name.startswith("mtlkit/")}
    expected |= {f"mtlkit/{name}" for name in files if name.startswith("kernels/")}
    built = ("include/mtlkit.h", "lib/libmtlkit.so", "lib/libmtlkit_onnxruntime.so")
    expected |= {"mtlkit/_C" + sysconfig.get_config_var("EXT_SUFFIX"), *(f"mtlkit/deploy/{name}" for name in built)}
    assert {name for name in names if name.startswith("mtlkit/")} == expected


def test_wheel_imports(wheel, tmp_path, run_python):
    folder = install(wheel, tmp_path)
    script = "import mtlkit.kernels, mtlkit._native as n; print(mtlkit.__file__, mtlkit.kernels.__file__, n.C.__file__)"
    process = run_python("-c", script, copy=folder)
    assert process.returncode == 0, process.stderr
    assert all(Path(name).is_relative_to(folder) for name in process.stdout.split())


@pytest.mark.slow  # five minutes of processor time
@pytest.mark.skipif(sys.platform != "linux", reason="wheels of other systems have no policy")
def test_wheel_for_any_linux(source_archive, root, tmp_path, run_python):
    """The wheel of `make wheel`: auditwheel accepts its policy, and it runs without a compiler on PATH."""
    out, empty, folder = (tmp_path / name for name in ("out", "empty", "installed"))
    process = run([sys.executable, "tools/wheel.py", "--out", out], source_archive)
    assert process.returncode == 0, process.stdout + process.stderr
    (path,) = out.glob("*.whl")
    assert path.name.endswith(f"manylinux_2_28_{platform.machine()}.whl")
    assert path.stat().st_size < 20e6
    empty.mkdir()
    folder.mkdir()
    process = run_python(root / "tools" / "try_wheel.py", copy=install(path, folder), PATH=str(empty))
    assert process.returncode == 0, process.stdout + process.stderr
    assert str(folder) in process.stdout
    assert "Clang" in process.stdout


def test_pure_python(pure_wheel, tmp_path, run_python):
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    process = run_python("-m", "mtlkit.info", copy=install(pure_wheel, tmp_path))
    assert process.returncode == 0, process.stderr
    assert "mtlkit._C is not built" in process.stdout


@pytest.mark.parametrize(
    ("variable", "expected"), [("MTLKIT_CUDA", "expected auto, on or off"), ("MTLKIT_NATIVE", "expected on or off")]
)
def test_unknown_value_is_an_error(tree, variable, expected):
    process = run(WHEEL, tree, **{variable: "maybe"})
    assert process.returncode != 0
    assert f"{variable}='maybe' is unknown: {expected}." in process.stdout + process.stderr


def configure(tree: Path, folder: Path, cuda: str, nvcc: str, archs: str = "") -> subprocess.CompletedProcess:
    """Runs CMake to generate the build files, with `nvcc` (a shell script) as the CUDA compiler."""
    compiler = folder / "nvcc"
    compiler.write_text(f"#!/bin/sh\n{nvcc}\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IEXEC)
    pybind11 = run([sys.executable, "-m", "pybind11", "--cmakedir"], folder).stdout.strip()
    definitions = {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11,
        "MTLKIT_CUDA": cuda,
        "MTLKIT_CUDA_ARCHS": archs,
    }
    command = ["cmake", "-S", tree, "-B", folder / "build", "-G", "Ninja"]
    command += [f"-D{name}={value}" for name, value in definitions.items()]
    return run(command, folder, CUDACXX=str(compiler))


@pytest.mark.parametrize("nvcc", ["exit 1", "exit 0"], ids=["fails", "compiles nothing"])
def test_broken_nvcc_is_left_out(tree, tmp_path, nvcc):
    process = configure(tree, tmp_path, "auto", nvcc)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("the CUDA kernels are left out") == 1


def test_broken_nvcc_is_an_error_where_cuda_is_required(tree, tmp_path):
    process = configure(tree, tmp_path, "on", "exit 1")
    assert process.returncode != 0
    assert "MTLKIT_CUDA=on" in process.stderr


needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is neither on PATH nor named in CUDACXX")


@needs_nvcc
def test_each_configuration_counts_anew(tree, tmp_path):
    nvcc = f'exec {NVCC} "$@"'
    outputs = [configure(tree, tmp_path, *run).stdout for run in [("auto", "exit 1"), ("on", nvcc), ("off", nvcc)]]
    assert ["CUDA kernels for" in output for output in outputs] == [False, True, False]


@needs_nvcc
@pytest.mark.parametrize(
    ("archs", "expected"),
    [
        ("", "CUDA kernels for 80, 90"),
        ("90 80", "for 80, 90+PTX"),
        ("all", "for 75, 80, 86, 89, 90"),
        ("80,7", "does not know '7'"),
    ],
)
def test_architectures(tree, tmp_path, archs, expected):
    process = configure(tree, tmp_path, "auto", f'exec {NVCC} "$@"', archs)
    assert (process.returncode == 0) == ("know" not in expected)
    assert expected in process.stdout + process.stderr


def test_tools_are_pinned_alike(root):
    """`make lint` and pre-commit run the same ruff and clang-format."""
    project, hooks = ((root / name).read_text() for name in ("pyproject.toml", ".pre-commit-config.yaml"))
    for tool in ("ruff", "clang-format"):
        (pinned,) = re.findall(rf'"{tool}==([\d.]+)"', project)
        assert re.search(rf"/(mirrors-)?{tool}(-pre-commit)?\n    rev: v{re.escape(pinned)}\n", hooks), tool


def test_every_dependency_has_a_floor(root):
    """Except parts of mtlkit itself, and ninja, of which any release works."""
    text = (root / "pyproject.toml").read_text()
    block = text[text.index("\ndependencies = ") : text.index("[project.scripts]")]
    names = [name for name in re.findall(r'"([^"]+)"', block) if not name.startswith("mtlkit[")]
    assert {name for name in names if not re.search(r"[>=]=", name)} == {"ninja", "version"}
