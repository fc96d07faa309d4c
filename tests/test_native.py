"""The compiled module: loaded, or a sentence with the reason why not."""

import pytest

from mtlkit import _native

SCRIPT = """
import importlib, sys
from unittest.mock import patch

def fail(name):
    raise {error}

with patch.object(importlib, "import_module", fail):
    from mtlkit import _native
print(_native.C, _native.why_not)
"""


def test_module_or_reason():
    assert (_native.C is None) == (_native.why_not is not None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("ModuleNotFoundError(name)", "None mtlkit._C is not built\n"),
        ("ImportError('file too short')", "None mtlkit._C does not load: file too short\n"),
        ("SystemError('broken')", "None mtlkit._C does not load: broken\n"),
    ],
)
def test_failure_is_told_and_not_raised(run_python, error, words):
    process = run_python("-c", SCRIPT.format(error=error))
    assert process.stdout == words, process.stderr
