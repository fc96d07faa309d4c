"""One folder an operator: its formula and declaration, its reference, and one file for each backend.

`_operator.py` has the machinery that all of them share, `_backends.py` chooses among the backends, and `_launch.py`
turns tensors into the arguments of `mtlkit._C`. The functions for users are in `mtlkit.ops`.
"""

from mtlkit.operators._backends import BACKENDS, BackendState, describe, obstacle, use_backend

__all__ = ["BACKENDS", "BackendState", "describe", "obstacle", "use_backend"]
