"""The names that tests and benchmarks import from mtlkit.testing."""

import mtlkit.testing


def test_every_name_is_there():
    assert all(hasattr(mtlkit.testing, name) for name in mtlkit.testing.__all__)
    assert {shape.updates > 0 for shape in mtlkit.testing.SS2D_SHAPES.values()} == {True}
