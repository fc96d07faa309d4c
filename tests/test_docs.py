"""Every public symbol has an example that runs, and every guarantee has a test."""

import ast
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import mtlkit
from mtlkit.errors import DataError

MODULES = ["mtlkit"] + [
    module.name
    for module in pkgutil.walk_packages(mtlkit.__path__, "mtlkit.")
    if not module.name.startswith("mtlkit._C") and not module.name.endswith("__main__")
]
PACKAGES = [
    "mtlkit",
    "mtlkit.compat",
    "mtlkit.ops",
    "mtlkit.nn",
    "mtlkit.models",
    "mtlkit.losses",
    "mtlkit.metrics",
    "mtlkit.data",
    "mtlkit.data.synthetic",
    "mtlkit.errors",
    "mtlkit.inference",
    "mtlkit.evaluation",
    "mtlkit.training",
    "mtlkit.deploy",
    "mtlkit.testing",
]
SYMBOLS = [
    pytest.param(getattr(importlib.import_module(package), name), id=f"{package}.{name}")
    for package in [*PACKAGES, "mtlkit.operators.directional_scan.orders"]
    for name in importlib.import_module(package).__all__
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_every_symbol_has_an_example(symbol):
    """An error that differs from its base only by name uses the base's example."""
    assert symbol.__doc__ or not callable(symbol)
    while isinstance(symbol, type) and issubclass(symbol, DataError) and "__init__" not in vars(symbol):
        symbol = symbol.__base__
    if callable(symbol):
        assert ">>> " in symbol.__doc__


def test_every_layer_is_public():
    stems = [module.name for module in pkgutil.iter_modules(mtlkit.nn.__path__) if not module.name.startswith("_")]
    assert {name.lower() for name in mtlkit.nn.__all__} == {stem.replace("_", "") for stem in stems}


def functions_of(file: Path) -> set[str]:
    """Names of the functions in a file; methods are preceded by their class."""
    tree = ast.parse(file.read_text())
    found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for owner in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        found |= {f"{owner.name}.{node.name}" for node in owner.body if isinstance(node, ast.FunctionDef)}
    return found


def test_every_guarantee_names_a_test_that_is_there_and_a_report(root):
    page = (root / "docs" / "reliability.md").read_text()
    rows = re.findall(r"^\| (.+) \| (.*`tests/.*) \| (.*) \|$", page, flags=re.MULTILINE)
    assert f"the {len(rows)} guarantees" in page
    for guarantee, tests, reports in rows:
        assert re.search(r"\[\S*#\d+\]\(https://github\.com/\S+/(issues|pull)/\d+\)", reports), guarantee
        assert "::" in tests, guarantee
    for file, name in re.findall(r"(tests/[\w/]+\.py)::([\w.]+)", page):
        assert name in functions_of(root / file), f"{file}::{name}"
