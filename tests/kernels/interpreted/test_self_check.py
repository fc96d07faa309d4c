"""The check at first use, of Triton's kernels: right ones pass, one with a faulty source fails."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import mtlkit.kernels
from mtlkit.kernels import norm_gate
from mtlkit.operators import _self_check

FLOAT32 = torch.empty(0)


@pytest.fixture(autouse=True)
def _first_use(monkeypatch, tmp_path):
    monkeypatch.setenv("MTLKIT_SELF_CHECK", "on")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("_passed", "_faults", "_told"):
        monkeypatch.setattr(_self_check, name, type(getattr(_self_check, name))())


@pytest.mark.parametrize("operator", ["norm_gate", "dwconv_silu", "causal_conv1d"])  # a scan would take ten seconds
def test_right_kernels_pass(operator):
    assert _self_check.fault(operator, "triton", FLOAT32, True) is None
    assert _self_check._passed


def test_a_mistake_in_a_kernel_is_noticed(monkeypatch, tmp_path):
    source = Path(norm_gate.__file__).read_text()
    line = "variance = tl.sum(centred * centred, 1) / D - drift * drift"
    assert source.count(line) == 1
    altered = tmp_path / "norm_gate.py"
    altered.write_text(source.replace(line, line.replace("/ D -", "/ (D - 1) -")))
    spec = importlib.util.spec_from_file_location("mtlkit.kernels.norm_gate", altered)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(mtlkit.kernels, "norm_gate", module)
    monkeypatch.setitem(sys.modules, "mtlkit.kernels.norm_gate", module)
    with pytest.warns(RuntimeWarning, match=r"'triton': its kernels failed .*y: relative error 5\.\d+e-03 is beyond"):
        words = _self_check.fault("norm_gate", "triton", FLOAT32, False)
    assert "mtlkit doctor" in words
