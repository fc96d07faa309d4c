"""The package `selective_scan` of VMamba."""

import pytest
import torch

from harness.mamba import assert_same_with_gradients, inputs, restated_scan
from mtlkit import compat


@pytest.fixture(autouse=True)
def _installed():
    assert compat.install("selective_scan")
    yield
    compat.uninstall("selective_scan")


@pytest.mark.parametrize("name", ["selective_scan_fn", "selective_scan_fn_v1", "selective_scan_ref"])
def test_functions(name):
    import selective_scan

    function = getattr(selective_scan, name)
    assert_same_with_gradients(
        lambda leaves: function(**leaves, delta_softplus=True),
        lambda leaves: restated_scan(**leaves, delta_softplus=True)[0],
        inputs(2, 2, 3, 13, 4, ("grouped", "grouped"), ("D", "delta_bias"), torch.float64),
    )


def test_as_called_by_sigma():
    from selective_scan.selective_scan_interface import SelectiveScanFn, selective_scan_fn

    arguments = inputs(1, 2, 3, 9, 4, ("variable", "variable"), ("D", "delta_bias"), torch.float16).values()
    u, delta, A, B, C, D, bias = (t.half() for t in arguments)
    y = selective_scan_fn(u, delta, A, B, C, D, bias, True, 1)
    assert y.dtype == torch.float16
    assert torch.equal(y, SelectiveScanFn.apply(u, delta, A, B, C, D, bias, True, 1))
