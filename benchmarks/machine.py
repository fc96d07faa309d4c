"""The machine and software of a run, how busy the machine is, and what limits its arithmetic."""

import json
import os
import platform
import re
import subprocess
import time
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import torch

import mtlkit
from mtlkit import _native
from mtlkit.info import cpu_name, version_of
from mtlkit.operators import floors

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundle.json"
PROC = Path("/proc")
THREADS = torch.get_num_threads()  # of the run: a benchmark on one thread does not change the threads of the yardstick
BUSY = 0.5  # cores that other programs may use in a run whose results are kept
ISA = {"avx512": "AVX-512", "avx2": "AVX2", "baseline": "baseline"}

# --- what kind of machine ---------------------------------------------------------------------------------------------

# Families and models as CPUID reports them, and the bits of AVX-512 that a core executes per cycle (0: no AVX-512; a
# core with 256 takes two cycles). AMD's follow arch/x86/kernel/cpu/amd.c of Linux, Intel's asm/intel-family.h.
MICROARCHITECTURES: dict[str, tuple[tuple[int, set[int], str, int], ...]] = {
    "AuthenticAMD": (
        (0x17, {*range(0x30), *range(0x50, 0x60)}, "Zen", 0),
        (0x17, {*range(0x30, 0x50), *range(0x60, 0x80), 0x90, 0x91, *range(0xA0, 0xB0)}, "Zen 2", 0),
        (0x19, {*range(0x10), *range(0x20, 0x60)}, "Zen 3", 0),
        (0x19, {*range(0x10, 0x20), *range(0x60, 0xB0)}, "Zen 4", 256),
        (0x1A, {*range(0x20), *range(0x40, 0x50), *range(0x70, 0x80)}, "Zen 5", 512),
        (0x1A, {*range(0x20, 0x30), *range(0x60, 0x70)}, "Zen 5 mobile", 256),
    ),
    "GenuineIntel": (
        (6, {0x3C, 0x3F, 0x45, 0x46}, "Haswell", 0),
        (6, {0x3D, 0x47, 0x4F, 0x56}, "Broadwell", 0),
        (6, {0x4E, 0x5E, 0x8E, 0x9E}, "Skylake", 0),
        (6, {0x55}, "Skylake-SP", 512),
        (6, {0x6A, 0x6C, 0x7D, 0x7E}, "Ice Lake", 512),
        (6, {0x8C, 0x8D}, "Tiger Lake", 512),
        (6, {0x97, 0x9A}, "Alder Lake", 0),
        (6, {0xB7, 0xBA, 0xBF}, "Raptor Lake", 0),
        (6, {0x8F}, "Sapphire Rapids", 512),
        (6, {0xCF}, "Emerald Rapids", 512),
        (6, {0xAD, 0xAE}, "Granite Rapids", 512),
    ),
}


def cpuid() -> tuple[str, int, int] | None:
    """Vendor, family and model, if the system reports them."""
    try:
        text = (PROC / "cpuinfo").read_text()
    except OSError:
        return None
    fields = dict(re.findall(r"^(vendor_id|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    try:
        return fields["vendor_id"], int(fields["cpu family"]), int(fields["model"])
    except KeyError:  # not x86
        return None


def microarchitecture(identity: tuple[str, int, int] | None) -> tuple[str, int | None]:
    """Its name, "unknown (...)" if it is not in the table, and the bits of AVX-512 that a core executes per cycle."""
    if identity is None:
        return f"unknown ({platform.machine()})", None
    vendor, family, model = identity
    for known, models, name, bits in MICROARCHITECTURES.get(vendor, ()):
        if known == family and model in models:
            return name, bits
    return f"unknown ({vendor}, family {family}, model {model})", None


def stem(machine: dict[str, Any]) -> str:
    """Name of the results file: zen5, or zen5-avx2 if the run was limited to less than the CPU supports."""
    name = re.sub(r"[^a-z0-9]+", "-", machine["microarchitecture"].lower()).strip("-")
    name = re.sub("^zen-", "zen", name)
    return f"{name}-{machine['isa']}" if limited(machine) else name


def limited(machine: dict[str, Any]) -> bool:
    """Whether MTLKIT_CPU_ISA asks for less than the CPU supports."""
    return bool(machine["isa_levels"]) and machine["isa"] != machine["isa_levels"][-1]


def kind(machine: dict[str, Any]) -> str:
    """The kind of machine in words: "Zen 5", "Zen 5, AVX2 code"."""
    return machine["microarchitecture"] + (f", {ISA[machine['isa']]} code" if limited(machine) else "")


def governor() -> str:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return "not readable"


# --- how busy it is ---------------------------------------------------------------------------------------------------


class Load(NamedTuple):
    """Load by other programs: the cores that they used while this process slept, their names, and the load average."""

    cores: float | None
    programs: str
    average: float | None

    @property
    def busy(self) -> bool:
        return self.cores is not None and self.cores > BUSY

    def in_words(self) -> str:
        if self.cores is None:
            return "unknown"
        average = "" if self.average is None else f", load average {self.average:.2f}"
        return f"{self.cores:.2f} cores{f' ({self.programs})' if self.programs else ''}{average}"


def load(seconds: float = 1.0) -> Load:
    """Measured over this many seconds, because the load average still counts programs that have ended."""
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    try:
        before, programs = _busy_ticks(), _program_ticks()
        time.sleep(seconds)
        after, later = _busy_ticks(), _program_ticks()
    except OSError:
        return Load(None, "", average)
    second = seconds * os.sysconf("SC_CLK_TCK")
    used: Counter[str] = Counter()
    for (name, pid), ticks in later.items():
        used[name] += (ticks - programs.get((name, pid), 0)) / second
    most = [f"{name} {cores:.2f}" for name, cores in used.most_common(3) if cores >= 0.05]
    return Load((after - before) / second, ", ".join(most), average)


def _busy_ticks() -> int:
    """Busy ticks of all cores, including time that the hypervisor gave to other machines."""
    user, nice, system, _idle, _wait, irq, softirq, steal, *_ = map(int, (PROC / "stat").read_text().split()[1:11])
    return user + nice + system + irq + softirq + steal


def _program_ticks() -> dict[tuple[str, str], int]:
    """Ticks of each program, by name and process id."""
    found = {}
    for file in PROC.glob("[0-9]*/stat"):
        try:
            pid_and_name, _, rest = file.read_text().rpartition(") ")
        except OSError:  # the process has ended
            continue
        fields = rest.split()
        found[pid_and_name.partition("(")[2], file.parent.name] = int(fields[11]) + int(fields[12])
    return found


# --- limits of the arithmetic -----------------------------------------------------------------------------------------


def yardstick(runs: int = 9, seconds: float = 0.05, *, polynomial: bool = False) -> float | None:
    """`floors.yardstick` on all threads of the run."""
    return floors.yardstick(runs, seconds, threads=THREADS, polynomial=polynomial)


# --- what is needed to interpret or repeat the results ----------------------------------------------------------------


def git(*arguments: str) -> str | None:
    answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None


def commit() -> str | None:
    """The commit, with a mark if files that are compiled or imported differ from it."""
    if BUNDLE.exists():  # packed by tools/gpu_bundle.py
        return json.loads(BUNDLE.read_text())["commit"]
    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "csrc", "mtlkit", "benchmarks/*.py")
    except FileNotFoundError:  # git is not installed
        return None
    return f"{revision} with changes" if revision and changed else revision


def description() -> dict[str, Any]:
    native = _native.C
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    packages = ("torch", "numpy", "mambapy", "mamba-ssm", "onnxruntime", "openvino", "pytest-benchmark")
    identity = cpuid()
    name, bits = microarchitecture(identity)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "cpu": cpu_name(),
            "family_model": identity and list(identity[1:]),
            "microarchitecture": name,
            "avx512_bits": bits,
            "architecture": platform.machine(),
            "system": f"{platform.system()} {platform.release()}",
            "governor": governor(),
            "cores": cores,
            "threads": THREADS,
            "isa": native.cpu_isa() if native else None,
            "isa_levels": native.cpu_isa_levels() if native else [],
        },
        "versions": {
            "mtlkit": mtlkit.__version__,
            "python": platform.python_version(),
            "compiler": native.compiler if native else None,
            **{package: version_of(package) for package in packages},
        },
    }
