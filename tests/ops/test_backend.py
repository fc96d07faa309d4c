"""The choice of a backend: what is asked for, what serves, and what is said where it cannot."""

import pytest
import torch

import mtlkit
from mtlkit import _native
from mtlkit.ops import _backend
from mtlkit.testing import SS2DShape

SHAPE = SS2DShape(1, 4, 3, 3, 2, 1)
CPU, META = torch.device("cpu"), torch.device("meta")
SERVED = ("cpu", "torch", "reference")


def choice(served=SERVED, device=CPU, **limits: str) -> str:
    return _backend.choose("op", served, device, limits)


def test_auto_takes_the_fastest_that_serves(monkeypatch):
    assert choice() == "cpu"
    assert choice(device=META) == "torch"
    assert choice(cpu="it has its limits") == "torch"
    assert choice(served=("reference",)) == "reference"
    monkeypatch.setattr(_native, "C", None)
    monkeypatch.setattr(_native, "why_not", "mtlkit._C is not built")
    assert choice() == "torch"


def test_a_request_holds_until_the_next_or_the_end_of_its_block():
    with mtlkit.use_backend("reference"):
        assert choice() == "reference"
        with mtlkit.use_backend("torch"):
            assert choice() == "torch"
        assert choice() == "reference"
        mtlkit.use_backend("cpu")
        assert choice() == "cpu"
    assert choice() == "cpu"
    with pytest.raises(RuntimeError, match="out"), mtlkit.use_backend("torch"):
        raise RuntimeError("out of the block")
    assert choice() == "cpu"


@pytest.mark.parametrize(
    ("backend", "device", "reason"),
    [
        ("cuda", CPU, "it has no op; those that have: cpu, torch, reference"),
        ("triton", CPU, "it has no op"),
        ("cpu", META, "it serves tensors on the CPU, and these are on meta"),
    ],
)
def test_a_request_that_cannot_be_met_says_why(backend, device, reason):
    with mtlkit.use_backend(backend), pytest.raises(ValueError, match=f"{backend}.*cannot serve op: {reason}"):
        choice(device=device)


def test_a_request_for_kernels_that_are_not_built_names_the_mend(monkeypatch):
    monkeypatch.setattr(_native, "C", None)
    monkeypatch.setattr(_native, "why_not", "mtlkit._C is not built")
    with mtlkit.use_backend("cpu"), pytest.raises(ValueError, match=r"_C is not built; .*pip install -e"):
        mtlkit.ops.ss2d(**SHAPE.inputs())


def test_unknown_names():
    with pytest.raises(ValueError, match=r"name: expected 'auto' or one of 'reference', .*, got 'fast'"):
        mtlkit.use_backend("fast")


def test_environment(run_python):
    script = "import mtlkit; from mtlkit.testing import SS2DShape as S; mtlkit.ops.ss2d(**S(1, 4, 3, 3, 2, 1).inputs())"
    assert run_python("-c", script, MTLKIT_BACKEND="reference").returncode == 0
    assert run_python("-c", script, MTLKIT_BACKEND="").returncode == 0
    wrong = run_python("-c", script, MTLKIT_BACKEND="fast")
    assert "ValueError: MTLKIT_BACKEND: expected 'auto' or one of" in wrong.stderr
    assert "got 'fast'" in wrong.stderr


def test_environment_can_lower_the_instruction_set(run_python):
    script = "from mtlkit import _native; print(_native.C.cpu_isa())"
    levels = _native.C.cpu_isa_levels()
    assert run_python("-c", script).stdout.strip() == levels[-1]
    for level in levels:
        assert run_python("-c", script, MTLKIT_CPU_ISA=level).stdout.strip() == level
    with pytest.raises(ValueError, match="no instruction-set level 'sse9'"):
        _native.C.set_cpu_isa("sse9")


def test_every_backend_has_a_state():
    states = _backend.describe()
    assert [state.name for state in states] == list(_backend.BACKENDS)
    assert all(state.detail for state in states)
    assert all(state.active or state.mend or "no operator" in state.detail for state in states)
