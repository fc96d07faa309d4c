"""Loads the compiled module `mtlkit._C`; importing this file never raises.

`C` is the module, or None where it was not built or does not load; `why_not` then says why in one sentence.
"""

from importlib import import_module
from typing import Any

C: Any = None  # what it holds is C++'s; backends use it after `choose` has found it
why_not: str | None = None

try:
    C = import_module("mtlkit._C")
except ModuleNotFoundError:
    why_not = "mtlkit._C is not built"
except Exception as error:  # a file cut short, of another Python or another architecture: whatever the loader raises
    why_not = f"mtlkit._C does not load: {error}"
