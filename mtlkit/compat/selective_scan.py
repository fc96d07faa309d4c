"""The package `selective_scan` of VMamba and the projects based on it: the scan without a gate."""

from typing import Any

from torch import Tensor

from mtlkit.compat.selective_scan_cuda import selective_scan_oflex
from mtlkit.operators.selective_scan import selective_scan_reference

__all__ = ["MODULES"]


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    nrows: int = 1,
) -> Tensor:
    """Returns the output, (B, D, L), in the dtype of u; arguments as in `mtlkit.compat.selective_scan_oflex`."""
    return selective_scan_oflex(u, delta, A, B, C, D, delta_bias, delta_softplus, oflex=False)


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """Computes the same token by token in plain PyTorch."""
    return selective_scan_reference(u, delta, A, B, C, D, None, delta_bias, delta_softplus)[0]


class SelectiveScanFn:
    """`SelectiveScanFn.apply` is `selective_scan_fn`."""

    apply = staticmethod(selective_scan_fn)


_FUNCTIONS: dict[str, Any] = {
    "selective_scan_fn": selective_scan_fn,
    "selective_scan_ref": selective_scan_ref,
    "SelectiveScanFn": SelectiveScanFn,
}
MODULES: dict[str, dict[str, Any]] = {
    "selective_scan": _FUNCTIONS | {"selective_scan_fn_v1": selective_scan_fn},
    "selective_scan.selective_scan_interface": _FUNCTIONS,
}
