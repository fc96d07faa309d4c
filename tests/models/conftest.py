"""Shared by the tests of networks."""

import pytest

SMALL = {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128), "num_classes": 3}


@pytest.fixture
def small() -> dict:
    """Options that shrink any network with four stages."""
    return dict(SMALL)
