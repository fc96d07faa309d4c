"""Helpers for tests of the Triton kernels: recorded launches, ahead-of-time compilation, disassembly."""

import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

OPTIONS = {"num_warps", "num_stages", "num_ctas", "maxnreg", "enable_fp_fusion"}
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32"}
BRANCH = re.compile(r"BRA.*?`\((\.L_\w+)\)")


class Launch(NamedTuple):
    """A kernel, its arguments by name, its compile options and its grid."""

    kernel: object
    arguments: dict
    options: dict
    grid: tuple[int, ...]


class Loop(NamedTuple):
    """Instructions of a loop, and their number by kind."""

    instructions: int
    kinds: Counter

    @property
    def exponentials(self) -> int:
        return self.kinds["MUFU.EX2"]


class Resources(NamedTuple):
    """The resources that a compiled kernel needs."""

    kernel: str
    target: str
    registers: int
    shared: int
    spills: int  # loads and stores of local memory
    atomics: int
    loops: tuple[Loop, ...]

    def __str__(self) -> str:
        return (
            f"{self.kernel:<28} {self.target} {self.registers:>4} registers {self.shared:>6} bytes shared "
            f"{self.spills:>3} spills"
        )


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], list[Launch]]:
    """The launches of a call on CPU tensors, recorded but not run."""
    from triton.runtime.jit import JITFunction

    def launches(call: Callable[[], object]) -> list[Launch]:
        seen = []

        def run(kernel, *args, grid, warmup, **options):
            arguments = dict(zip(kernel.arg_names, args, strict=False))
            arguments |= {name: value for name, value in options.items() if name not in OPTIONS}
            seen.append(Launch(kernel, arguments, {k: v for k, v in options.items() if k in OPTIONS}, grid))

        monkeypatch.setattr(JITFunction, "run", run)
        call()
        monkeypatch.undo()
        assert seen, "the call launched nothing"
        return seen

    return launches


def _source(launch: Launch):
    """The kernel, specialised for its arguments like Triton does: ones, multiples of 16, aligned pointers."""
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name], attributes[(i,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if -(1 << 31) <= value < 1 << 31 else "i64"
            if value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def _tool(name: str, *arguments: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def _instructions(disassembly: str) -> tuple[list[str], dict[str, int]]:
    """The instructions in order, and the position of each label."""
    instructions, labels = [], {}
    for line in disassembly.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(found[1].strip())
    return instructions, labels


def _kind(instruction: str) -> str:
    name = re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0]
    return ".".join(name.split(".")[: 2 if name.startswith("MUFU") else 1])


def _resources(launch: Launch, capability: int, folder: Path) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget

    compiled = triton.compile(_source(launch), target=GPUTarget("cuda", capability, 32), options=launch.options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    instructions, labels = _instructions(_tool("nvdisasm", "-c", str(cubin)))
    kinds = Counter(map(_kind, instructions))
    loops = []
    for end, instruction in enumerate(instructions):
        branch = BRANCH.search(instruction)
        start = labels.get(branch[1], end + 1) if branch else end + 1
        if start < end:
            loops.append(Loop(end - start + 1, Counter(map(_kind, instructions[start : end + 1]))))
    return Resources(
        launch.kernel.__name__,
        f"sm_{capability}",
        int(re.search(r"REG:(\d+)", _tool("cuobjdump", "-res-usage", str(cubin)))[1]),
        compiled.metadata.shared,
        kinds["LDL"] + kinds["STL"],
        sum(kinds[kind] for kind in ("ATOM", "ATOMG", "ATOMS", "RED", "REDG")),
        tuple(loops),
    )


class AMDResources(NamedTuple):
    """The resources that a kernel compiled for an AMD GPU needs."""

    kernel: str
    target: str
    registers: int
    shared: int
    spills: int
    scratch: int  # bytes of private memory per thread


@pytest.fixture
def compiled_for_amd(monkeypatch: pytest.MonkeyPatch) -> Callable[[Launch, str], AMDResources]:
    """Compiles a launch for an AMD GPU, without a GPU; launches are recorded as with torch for ROCm."""
    import triton
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget

    if "amd" not in backends:
        pytest.skip("this Triton compiles for no AMD GPU")
    monkeypatch.setattr(torch.version, "hip", "7.0")

    def resources(launch: Launch, target: str) -> AMDResources:
        lanes = 64 if target.startswith("gfx9") else 32
        compiled = triton.compile(_source(launch), target=GPUTarget("hip", target, lanes), options=launch.options)
        found = {
            name: int(re.search(rf"\.{name}:\s+(\d+)", compiled.asm["amdgcn"])[1])
            for name in ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
        }
        registers, spills, scratch = found.values()
        return AMDResources(launch.kernel.__name__, target, registers, compiled.metadata.shared, spills, scratch)

    return resources


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Launch, int], Resources]:
    """Compiles a launch for a compute capability, without a GPU."""
    folder = tmp_path_factory.mktemp("compiled")
    return lambda launch, capability: _resources(launch, capability, folder)
