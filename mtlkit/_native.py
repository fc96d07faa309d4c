"""Loads the compiled module `mtlkit._C`; importing this file never raises.

`C` is the module, or None where it was not built or does not load; `why_not` then says why in one sentence.
"""

from importlib import import_module
from typing import Any

C: Any = None  # Any: its members are defined in C++; backends use it only after `choose` has found it
why_not: str | None = None

try:
    C = import_module("mtlkit._C")
except ModuleNotFoundError:
    why_not = "mtlkit._C is not built"
except Exception as error:  # truncated, or built for another Python or architecture: the loader may raise anything
    why_not = f"mtlkit._C does not load: {error}"
