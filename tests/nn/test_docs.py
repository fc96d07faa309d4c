"""Every example in the documentation of a layer runs."""

import doctest
import importlib
import pkgutil

import pytest

import mtlkit.nn

STEMS = [module.name for module in pkgutil.iter_modules(mtlkit.nn.__path__) if not module.name.startswith("_")]


@pytest.mark.parametrize("stem", STEMS)
def test_examples(stem):
    failed, attempted = doctest.testmod(importlib.import_module(f"mtlkit.nn.{stem}"))
    assert attempted > 0
    assert failed == 0


def test_every_layer_is_public():
    assert {name.lower() for name in mtlkit.nn.__all__} == {stem.replace("_", "") for stem in STEMS}
