"""The list of planted faults: what each changes in the sources, and which tests must notice it.

The files of faults/ map a source file to its faults. Each has a `name`, unique in its file; `old`, a text that occurs
once in the file; `new`, which replaces it; `tests`, files or test ids of pytest, cheapest first, with options of pytest
behind them if need be; and, where no test can notice it, `survives` with the reason.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import yaml

FOLDER = Path(__file__).with_name("faults")
KINDS = {"csrc/cpu": "C++", "csrc/bindings": "C++", "csrc/common": "C++", "csrc/cuda": "CUDA", "kernels": "Triton"}


@dataclass(frozen=True)
class Fault:
    """One change of one file."""

    name: str
    file: str  # from the root
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str = ""

    @property
    def title(self) -> str:
        """Tells it from all others."""
        return f"{self.file}: {self.name}"

    @property
    def kind(self) -> str:
        return next((kind for folder, kind in KINDS.items() if self.file.startswith(f"{folder}/")), "Python")

    @property
    def digest(self) -> str:
        """Of all that a verdict depends on in the list."""
        return hashlib.sha256("\0".join((self.file, self.old, self.new, *self.tests)).encode()).hexdigest()[:12]

    def planted(self, text: str) -> str:
        """The file's text with the fault in it."""
        count = text.count(self.old)
        if count != 1:
            raise ValueError(f"{self.title}: expected its old text once, found it {count} times")
        return text.replace(self.old, self.new)


def load() -> list[Fault]:
    """All faults, in the order of the files' names."""
    found = []
    for path in sorted(FOLDER.glob("*.yaml")):
        for file, faults in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            for fault in faults:
                tests = fault.pop("tests")
                found.append(Fault(file=file, tests=tuple([tests] if isinstance(tests, str) else tests), **fault))
    return found
