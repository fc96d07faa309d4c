"""The rules of the house, read off the imports: privacy, the direction of imports, and a test for each module."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

FOLDERS = ("mtlkit", "kernels", "benchmarks", "examples")
# From the top down: a module imports from its own level and from those below, but for the pairs in APART.
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
# benchmarks/gpu_memory.py counts what the launches of a GPU allocate where there is none: it replaces the modules that
# look for one.
PRIVATE_ON_PURPOSE = {
    ("benchmarks/gpu_memory.py", "mtlkit.operators._backends"),
    ("benchmarks/gpu_memory.py", "mtlkit.operators._launch"),
}


class Import(NamedTuple):
    file: str  # from the root
    module: str  # that imports
    name: str  # that is imported, with all that leads to it


def module_of(file: Path) -> str:
    """Dotted name of a module; those of kernels/ are installed within mtlkit."""
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
    """Imports of mtlkit, wherever in a file they stand."""
    found = [entry for file in files for entry in imports_of(root, file) if entry.name.partition(".")[0] == "mtlkit"]
    assert len(found) > 300
    return found


def private_owner(name: str) -> tuple[str, str] | None:
    """The package of the first private part of a dotted name, and the name up to that part."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.startswith("_") and not part.startswith("__"):
            return ".".join(parts[:i]), ".".join(parts[: i + 1])
    return None


def test_private_names_stay_in_their_package(imports):
    """Those at the root of mtlkit belong to the whole project."""
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
        if mine is None:  # a helper at the root serves all levels, so that it needs none but the lowest
            mine = len(LEVELS) - 1
        if other < mine or (ours, theirs) in APART:
            wrong.append(f"{file}: {name}")
    assert not wrong


def test_every_part_of_mtlkit_has_a_level(root):
    """Or is a helper at the root that imports nothing of mtlkit but its like."""
    parts = {
        path.stem for path in (root / "mtlkit").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    helpers = {part for part in parts if level_of(part) is None}
    assert {name for name in helpers if not name.startswith("_")} == {"errors"}


def test_every_module_has_a_test_of_its_stem(root):
    """Its own, or where a folder is one stem (an operator, a family of layouts), that of the folder."""
    missing = []
    for path in sorted((root / "mtlkit").rglob("*.py")):
        file = path.relative_to(root / "mtlkit")
        if file.name == "__init__.py":
            continue
        stems = [file.with_suffix(""), *list(file.parents)[:-1]]
        tests = [
            root / "tests" / folder / f"test_{stem.name.strip('_')}.py"
            for stem in stems
            for folder in (stem.parent, stem)  # a stem of several files has a folder of its name in the tests, too
        ]
        if not any(test.is_file() for test in tests):
            missing.append(str(file))
    assert not missing
