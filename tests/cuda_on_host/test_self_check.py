"""The check at first use, of the CUDA kernels on the host: right ones pass, one without its barrier fails."""

import warnings
from pathlib import Path

import pytest
import torch

import mtlkit
from harness.cuda_on_host import serve
from mtlkit.operators import _self_check, norm_gate
from mtlkit.operators.samples import samples

BACKWARD = Path(__file__).resolve().parents[2] / "csrc" / "cuda" / "norm_gate" / "bwd.cu"
OPERATORS = [name for name, found in samples().items() if "cuda" in found[0].served]


@pytest.fixture
def first_use(kernels, monkeypatch, tmp_path):
    """A process that has not checked anything; its backend "cuda" accepts CPU tensors."""
    serve(kernels, monkeypatch)
    monkeypatch.setenv("MTLKIT_SELF_CHECK", "on")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("_passed", "_faults", "_told"):
        monkeypatch.setattr(_self_check, name, type(getattr(_self_check, name))())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_passes(first_use, operator, dtype):
    tensor = torch.empty(0, dtype=dtype)
    assert _self_check.fault(operator, "cuda", tensor, True) is None
    assert (operator, "cuda", tensor.device, dtype) in _self_check._passed


def test_a_kernel_without_its_barrier_is_not_used(first_use, kernels, monkeypatch):
    line = next(i for i, text in enumerate(BACKWARD.read_text().splitlines(), 1) if "block_sync();" in text)
    monkeypatch.setattr(norm_gate.OPERATOR, "served", ("cuda", "torch", "reference"))
    x = torch.randn(5, 6)
    kernels.leave_out(line)
    try:
        with pytest.warns(RuntimeWarning, match=r"norm_gate: another backend replaces 'cuda': .*doctor"):
            got = mtlkit.ops.norm_gate(x)
        with mtlkit.use_backend("cuda"), pytest.raises(ValueError, match="cannot run norm_gate: its kernels failed"):
            mtlkit.ops.norm_gate(x)
    finally:
        kernels.leave_out(0)
    with mtlkit.use_backend("torch"):
        assert torch.equal(got, mtlkit.ops.norm_gate(x))
    _self_check._faults.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(mtlkit.ops.norm_gate(x), got)
