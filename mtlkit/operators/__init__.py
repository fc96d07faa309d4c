"""One folder per operator: its formula and declaration, its reference, and one file for each backend.

`_operator.py` has the machinery that all operators share, `_backends.py` selects a backend, and `_launch.py` turns
tensors into the arguments of `mtlkit._C`. The public functions are in `mtlkit.ops`.
"""

from mtlkit.operators._backends import BACKENDS, BackendState, describe, obstacle, use_backend

__all__ = ["BACKENDS", "BackendState", "describe", "obstacle", "use_backend"]
