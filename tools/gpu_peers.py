"""Compiles the peers of mtlkit on a GPU: mamba-ssm, causal-conv1d, and VMamba's scan with its csm_triton.

    python tools/gpu_peers.py peers --archs 90 --out wheels --jobs 16 --install

takes their sources (archives or folders), and builds a wheel of each for the Python and torch that run this script. It
needs nvcc. tools/gpu_bundle.py packs the wheels or the sources, and tools/gpu.py compiles packed sources.
"""

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PEERS = ("mamba-ssm", "causal-conv1d")
# How PyTorch's extensions call nvcc, for the requested architectures, whatever their setup.py says.
NVCC = """\
#!{python}
import os, sys
line, words = {gencode!r}, iter(sys.argv[1:])
for word in words:
    if word == "-gencode":
        next(words)
    elif not word.startswith("-arch="):
        line.append(word)
os.execvp({nvcc!r}, [{nvcc!r}, *line])
"""
# Definitions that VMamba's sources need, and that CUDA 13's CUB does not have.
VMAMBA_CUB = """\
#include <cub/cub.cuh>
#if CUB_VERSION >= 300000
namespace cub {
__device__ __forceinline__ unsigned LaneId() {
    unsigned lane;
    asm("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
}
__device__ __forceinline__ void CTA_SYNC() { __syncthreads(); }
}  // namespace cub
#endif
"""
# Replaces VMamba's version, which queries a GPU for its architecture.
VMAMBA_SETUP = """\
from pathlib import Path
from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CUDAExtension

folder = Path("csrc/selective_scan")
undefined = ["HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_OPERATORS", "BFLOAT16_CONVERSIONS",
             "BFLOAT162_OPERATORS", "BFLOAT162_CONVERSIONS"]
flags = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "--expt-extended-lambda", "--use_fast_math",
         "-include", str(Path("removed_from_cub.cuh").resolve()),
         *(f"-U__CUDA_NO_{name}__" for name in undefined)]
names = ["selective_scan_oflex.cpp", "selective_scan_core_fwd.cu", "selective_scan_core_bwd.cu"]
setup(
    name="vmamba-scan",
    version="0",
    py_modules=["csm_triton"],
    ext_modules=[CUDAExtension(
        "selective_scan_cuda_oflex",
        [str(folder / "cusoflex" / name) for name in names],
        extra_compile_args={"cxx": ["-O3", "-std=c++17"], "nvcc": flags},
        include_dirs=[str(folder.resolve())],
    )],
    cmdclass={"build_ext": BuildExtension},
)
"""


def vmamba_sources(checkout: Path, folder: Path) -> Path:
    """VMamba's scan as a package that builds without a GPU, in a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkout / "kernels/selective_scan/csrc", folder / "csrc")
    shutil.copy(checkout / "classification/models/csm_triton.py", folder)
    (folder / "removed_from_cub.cuh").write_text(VMAMBA_CUB)
    (folder / "setup.py").write_text(VMAMBA_SETUP)
    return folder


def find_nvcc() -> str | None:
    """The nvcc of CUDACXX, of PATH, or where the CUDA toolkit is installed."""
    toolkit = os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")  # noqa: PTH118 - a search path
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path=toolkit)


def nvcc_for(nvcc: str, archs: str, folder: Path) -> Path:
    """A program that replaces nvcc and compiles only for these architectures."""
    gencode = [word for a in archs.split(";") for word in ("-gencode", f"arch=compute_{a},code=sm_{a}")]
    program = folder / "nvcc"
    program.write_text(NVCC.format(python=sys.executable, gencode=gencode, nvcc=nvcc))
    program.chmod(0o755)
    return program


def headers() -> list[str]:
    """Folders with CUDA headers from the packages that torch installs, if the toolkit has none."""
    torch = find_spec("torch")
    places = torch.submodule_search_locations if torch is not None else None
    return [str(folder) for place in places or () for folder in sorted(Path(place).parent.glob("nvidia/*/include"))]


def pip() -> list[str]:
    """The command for pip: this Python's pip, or the one in a packed wheel."""
    packed = sorted((ROOT / "wheels").glob("pip-*.whl"))
    return [sys.executable, *([str(packed[-1] / "pip")] if packed else ["-m", "pip"]), "--disable-pip-version-check"]


def build(sources: Sequence[Path], archs: str, out: Path, jobs: int) -> list[Path]:
    """Builds a wheel of each in parallel, each with this many compilers; returns those that were built."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("nvcc was not found, which compiles mtlkit's peers: put it on PATH, or name it in CUDACXX")
    out.mkdir(parents=True, exist_ok=True)
    variables = {
        "CUDA_HOME": str(Path(nvcc).resolve().parents[1]),
        "PYTORCH_NVCC": str(nvcc_for(nvcc, archs, out)),
        "TORCH_CUDA_ARCH_LIST": ";".join(f"{a[:-1]}.{a[-1]}" for a in archs.split(";")),  # else torch queries a GPU
        "MAX_JOBS": str(jobs),
        "CPATH": os.pathsep.join([*filter(None, [os.environ.get("CPATH")]), *headers()]),
        "MAMBA_FORCE_BUILD": "TRUE",
        "CAUSAL_CONV1D_FORCE_BUILD": "TRUE",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    line = ["nice", "-n", "10", *pip(), "wheel", "--no-deps", "--no-index", "--no-build-isolation"]
    found = []
    processes = []
    for source in sources:
        folder = out / f"{source.name}.built"
        processes.append((source, folder, subprocess.Popen([*line, "-w", folder, source], env=os.environ | variables)))
        if jobs == 1:
            processes[-1][2].wait()
    for source, folder, process in processes:
        if process.wait() != 0:
            print(f"{source.name}: was not built; the reason is printed above")
            continue
        (wheel,) = folder.glob("*.whl")
        if wheel.name.startswith("mamba_ssm-"):
            without_language_model(wheel)
        found.append(wheel.replace(out / wheel.name))
    return found


def without_language_model(wheel: Path) -> None:
    """Rewrites mamba-ssm's wheel so that importing it imports only the scan, without the packages of its networks."""
    draft = wheel.with_suffix(".draft")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename == "mamba_ssm/__init__.py":
                content = b"\n".join(line for line in content.splitlines() if line.startswith(b"__version__")) + b"\n"
            target.writestr(entry, content)
    draft.replace(wheel)


def main() -> int:
    """Returns 1 if one could not be built."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sources", type=Path, help="folder with the sources, as archives or folders")
    parser.add_argument("--archs", default="90", help='compute capabilities, e.g. "80;90"')
    parser.add_argument("--out", type=Path, required=True, help="folder for the wheels")
    parser.add_argument("--jobs", type=int, default=1, help="number of compiler processes")
    parser.add_argument("--install", action="store_true", help="install the wheels into this Python's environment")
    options = parser.parse_args()
    sources = sorted(path.resolve() for path in options.sources.iterdir() if not path.name.startswith("."))
    wheels = build(sources, options.archs, options.out.resolve(), options.jobs)
    if options.install and wheels:
        subprocess.run([*pip(), "install", "--no-deps", "--no-index", *wheels], check=True)
    print(f"built: {', '.join(wheel.name for wheel in wheels) or 'nothing'}")
    return int(len(wheels) < len(sources))


if __name__ == "__main__":
    sys.exit(main())
