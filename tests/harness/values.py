"""Unexpected values that people and programs write into files."""

import math
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

# values found in cells, tags and settings: text, nothing, numbers of every kind
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 2**31, -(2**63), 2**64, 10**400]),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 1e308, 5e-324]),
    st.text(max_size=8),
    st.sampled_from(["", " ", "NaN", "1e999", "-3", "1,5", "=1+1", "\0", "\ud800", "../x", "9" * 5000]),
)
JSON_VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def refusal(call: Callable[[], Any], *kinds: type[Exception]) -> str:
    """The message of an error of these kinds; "" if the call returns. Other errors are raised."""
    try:
        call()
    except kinds as error:
        return str(error)
    return ""
