"""The list of planted faults: what each changes in the sources, and which tests must detect it.

The files of faults/ map a source file to its faults. Each fault has a `name`, unique in its file; `old`, a text that
occurs once in the file; `new`, which replaces it; `tests`, files or test ids of pytest, cheapest first, optionally
followed by options of pytest; and, if no test can detect it, `survives` with the reason.
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
    file: str  # relative to the root
    old: str
    new: str
    tests: tuple[str, ...]
    survives: str = ""

    @property
    def title(self) -> str:
        """A name that is unique over all files."""
        return f"{self.file}: {self.name}"

    @property
    def kind(self) -> str:
        return next((kind for folder, kind in KINDS.items() if self.file.startswith(f"{folder}/")), "Python")

    @property
    def digest(self) -> str:
        """A hash of everything in the list that affects the verdict."""
        return hashlib.sha256("\0".join((self.file, self.old, self.new, *self.tests)).encode()).hexdigest()[:12]

    def planted(self, text: str) -> str:
        """The text of the file including the fault."""
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
