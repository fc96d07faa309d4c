"""mtlkit.ops contains only the public functions, each documented with an example."""

import inspect

from mtlkit import ops


def test_names_are_the_public_ones():
    public = {name for name, value in vars(ops).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public | {"orders"} == set(ops.__all__)  # orders is a module of functions
    assert sorted(ops.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name)) == ops.__all__


def test_functions_have_examples():
    functions = [getattr(ops, name) for name in ops.__all__ if inspect.isfunction(getattr(ops, name))]
    assert functions
    for function in functions:
        assert ">>> " in (function.__doc__ or ""), function.__name__
