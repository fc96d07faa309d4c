"""Rules of the code base, checked by its imports: privacy, direction of imports, and a test for each module."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

FOLDERS = ("mtlkit", "kernels", "benchmarks", "examples")
# From top to bottom: a module imports from its own level and those below, except for the pairs in APART.
LEVELS = (
    {"cli", "__main__"},
    {"training", "evaluation", "inference"},
    {"models", "_accelerate", "compat", "data", "deploy", "losses", "metrics", "configs"},
    {"nn"},
    {"testing", "info"},
    {"ops"},
    {"operators"},
    {"kernels", "_native", "_C"},
)
APART = {("models", "data"), ("models", "losses"), ("losses", "data"), ("models", "_accelerate"), ("models", "compat")}
# benchmarks/gpu_memory.py computes the memory of GPU launches without a GPU, and therefore replaces
# the modules that look for a GPU.
PRIVATE_ON_PURPOSE = {
    ("benchmarks/gpu_memory.py", "mtlkit.operators._backends"),
    ("benchmarks/gpu_memory.py", "mtlkit.operators._launch"),
}


class Import(NamedTuple):
    file: str  # relative to the root
    module: str  # the importing module
    name: str  # the imported name, with its path


def module_of(file: Path) -> str:
    """Dotted name of a module; those of kernels/ are installed as part of mtlkit."""
    parts = file.with_suffix("").parts
    parts = ("mtlkit", *parts) if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(root: Path, file: Path) -> Iterator[Import]:
    module = module_of(file)
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse((root / file).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            yield Import(str(file), module, name)


@pytest.fixture(scope="module")
def files(root) -> list[Path]:
    found = [path.relative_to(root) for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))]
    assert len(found) > 100
    return found


@pytest.fixture(scope="module")
def imports(root, files) -> list[Import]:
    """All imports of mtlkit, at any place in a file."""
    found = [entry for file in files for entry in imports_of(root, file) if entry.name.partition(".")[0] == "mtlkit"]
    assert len(found) > 300
    return found


def private_owner(name: str) -> tuple[str, str] | None:
    """The package of the first private part of a dotted name, and the name up to and including that part."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.startswith("_") and not part.startswith("__"):
            return ".".join(parts[:i]), ".".join(parts[: i + 1])
    return None


def test_private_names_stay_in_their_package(imports):
    """Private names at the root of mtlkit may be used everywhere in it."""
    found = set()
    for file, module, name in imports:
        owner, private = private_owner(name) or ("mtlkit", "")
        if owner != "mtlkit" and not f"{module}.".startswith(f"{owner}."):
            found.add((file, private))
    assert found == PRIVATE_ON_PURPOSE


def level_of(part: str) -> int | None:
    return next((i for i, level in enumerate(LEVELS) if part in level), None)


def test_imports_run_one_way(imports):
    wrong = []
    for file, module, name in imports:
        if not module.startswith("mtlkit."):
            continue
        ours, theirs = module.split(".")[1], name.split(".")[1] if "." in name else ""
        mine, other = level_of(ours), level_of(theirs)
        if other is None:  # a helper at the root, or a name of mtlkit/__init__.py
            continue
        if mine is None:  # all levels use a helper at the root, so that it may import only the lowest
            mine = len(LEVELS) - 1
        if other < mine or (ours, theirs) in APART:
            wrong.append(f"{file}: {name}")
    assert not wrong


def test_every_part_of_mtlkit_has_a_level(root):
    """Or is a helper at the root that imports only such helpers."""
    parts = {
        path.stem for path in (root / "mtlkit").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    helpers = {part for part in parts if level_of(part) is None}
    assert {name for name in helpers if not name.startswith("_")} == {"errors"}


def test_every_module_has_a_test_of_its_stem(root):
    """A test file, or a folder of tests if a folder shares one stem (an operator, a family of layouts)."""
    missing = []
    for path in sorted((root / "mtlkit").rglob("*.py")):
        file = path.relative_to(root / "mtlkit")
        if file.name == "__init__.py":
            continue
        stems = [file.with_suffix(""), *list(file.parents)[:-1]]
        tests = [
            root / "tests" / folder / f"test_{stem.name.strip('_')}.py"
            for stem in stems
            for folder in (stem.parent, stem)  # a stem with several test files has a folder with its name
        ]
        if not any(test.is_file() for test in tests):
            missing.append(str(file))
    assert not missing
