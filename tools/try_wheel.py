"""Tests the installed mtlkit: its kernels, their threads, and the command. Needs torch, but no compiler.

    python tools/try_wheel.py

Continuous integration runs this for each wheel that it builds.
"""

import sys
from pathlib import Path

import torch

import mtlkit
from mtlkit import _native
from mtlkit.cli import main as command


def openmp_libraries() -> list[str]:
    """The OpenMP libraries loaded in this process; none if the system does not list them."""
    maps = Path("/proc/self/maps")
    files = (
        {Path(line.split()[-1]) for line in maps.read_text().splitlines() if "/" in line} if maps.exists() else set()
    )
    return sorted(str(file) for file in files if file.name.startswith(("libgomp", "libomp", "libiomp")))


def outputs(backend: str) -> list[torch.Tensor]:
    """Output and gradient of a scan by one backend."""
    generator = torch.Generator().manual_seed(0)
    u, delta = (torch.rand(2, 8, 65, generator=generator, requires_grad=True) for _ in range(2))
    A, B, C = -torch.rand(8, 4, generator=generator), *(torch.rand(2, 4, 65, generator=generator) for _ in range(2))
    with mtlkit.use_backend(backend):
        y = mtlkit.selective_scan_fn(u, delta, A, B, C)
        return [y.detach(), *torch.autograd.grad(y.sum(), [u, delta])]


def main() -> int:
    """Exits with 0 if everything works."""
    if _native.C is None:
        print(f"pure Python: {_native.why_not}")
    else:
        torch.set_num_threads(max(2, torch.get_num_threads()))
        found = {}
        for openmp in (True, False):
            _native.C.use_openmp(openmp)
            found[openmp] = outputs("cpu")
            torch.testing.assert_close(found[openmp], outputs("reference"), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[True], found[False], rtol=0, atol=0)
        _native.C.use_openmp(True)
    libraries = openmp_libraries()
    if len(libraries) > 1:
        print(f"expected one OpenMP library in the process, got {', '.join(libraries)}")
        return 1
    return command(["info"])


if __name__ == "__main__":
    sys.exit(main())
