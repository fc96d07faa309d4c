"""The package `selective_scan` that VMamba and the projects after it install: the scan without a gate."""

from torch import Tensor

from mtlkit.compat.selective_scan_cuda import selective_scan_oflex
from mtlkit.operators.selective_scan import selective_scan_reference

__all__ = ["MODULES"]


def selective_scan_fn(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False, nrows=1) -> Tensor:
    """The output, (B, D, L); arguments as of `mtlkit.compat.selective_scan_oflex`, and in the dtype of u."""
    return selective_scan_oflex(u, delta, A, B, C, D, delta_bias, delta_softplus, oflex=False)


def selective_scan_ref(u, delta, A, B, C, D=None, delta_bias=None, delta_softplus=False) -> Tensor:
    """The same token by token in plain PyTorch."""
    return selective_scan_reference(u, delta, A, B, C, D, None, delta_bias, delta_softplus)[0]


class SelectiveScanFn:
    """`SelectiveScanFn.apply` is `selective_scan_fn`."""

    apply = staticmethod(selective_scan_fn)


_FUNCTIONS = {
    "selective_scan_fn": selective_scan_fn,
    "selective_scan_ref": selective_scan_ref,
    "SelectiveScanFn": SelectiveScanFn,
}
MODULES = {
    "selective_scan": _FUNCTIONS | {"selective_scan_fn_v1": selective_scan_fn},
    "selective_scan.selective_scan_interface": _FUNCTIONS,
}
