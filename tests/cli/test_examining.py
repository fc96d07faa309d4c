"""The calls of `mtlkit doctor`, in this process and in separate ones."""

import math

import pytest
import torch

from mtlkit import _native
from mtlkit.cli import _examining
from mtlkit.cli._examining import DTYPES, Finding, examine, operators, planned
from mtlkit.operators.norm_gate import cpu

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")


@pytest.fixture(autouse=True)
def _as_before():
    level, threads = _native.C.cpu_isa(), torch.get_num_threads()
    yield
    _native.C.set_cpu_isa(level)
    torch.set_num_threads(threads)


def findings(most: int = 1) -> list[Finding]:
    return [found for _, found in examine(planned(["norm_gate"], most)) if found is not None]


def test_every_backend_dtype_and_instruction_set_is_examined():
    found = findings()
    backends = {*(f"cpu {level}" for level in _native.C.cpu_isa_levels()), "torch"}
    assert {(f.backend, f.dtype) for f in found if f.device == "cpu"} == {(b, d) for b in backends for d in DTYPES}
    assert all(f.fault is None and 0 <= f.share <= 1 and f.seconds > 0 and f.result for f in found)
    assert len(operators()) == len(set(operators())) >= 11
    assert len(planned(["norm_gate"], 100)) > 3 * len(found)


def test_backends_are_chosen_by_name():
    assert {call.backend for call, _ in planned(["norm_gate"], 1, ["torch"])} == {"torch"}
    levels = {f"cpu {level}" for level in _native.C.cpu_isa_levels()}
    assert {call.backend for call, _ in planned(["norm_gate"], 1, ["cpu"])} == levels


def test_a_call_is_named_before_it_is_made():
    plan = planned(["norm_gate"], 1)[:2]
    assert [(call.backend, found is not None) for call, found in examine(plan)] == [
        (call.backend, made) for call, _ in plan for made in (False, True)
    ]


def test_a_wrong_kernel_is_named(monkeypatch):
    backward = cpu.backward
    monkeypatch.setattr(cpu, "backward", lambda *given: [None if g is None else g * 1.01 for g in backward(*given)])
    wrong = [f for f in findings() if f.fault]
    assert {f.backend for f in wrong} == {f"cpu {level}" for level in _native.C.cpu_isa_levels()}
    assert all(f.fault.startswith("dx: relative error 1.0") and f.share > 1 for f in wrong if f.dtype == "float32")


def test_what_is_not_comparable_is_worse_than_any_error(monkeypatch):
    forward = cpu.forward
    monkeypatch.setattr(cpu, "forward", lambda *given: (forward(*given)[0] * math.nan,))
    wrong = [f for f in findings() if f.fault]
    assert len(wrong) == len(DTYPES) * len(_native.C.cpu_isa_levels())
    assert all(f.share == math.inf and f.fault.startswith("y: relative error nan") for f in wrong)


def test_a_kernel_that_raises_is_named(monkeypatch):
    def fail(*_):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(cpu, "forward", fail)
    assert {f.fault for f in findings()} == {None, "RuntimeError: no kernel image"}


def test_a_kernel_whose_bits_change_is_named(monkeypatch):
    forward, calls = cpu.forward, []

    def unsteady(*given):
        calls.append(None)
        (y,) = forward(*given)
        return (y * (1 + 1e-7 * (len(calls) % 2)),)

    monkeypatch.setattr(cpu, "forward", unsteady)
    faults = {f.fault for f in findings() if f.dtype == "float32"}
    assert faults == {None, "y: other bits when computed again"}


def test_a_call_without_an_answer_is_ended(monkeypatch):
    monkeypatch.setattr(_examining, "PATIENCE", 0.5)
    monkeypatch.setattr(_examining, "CODE", "import time; print(1); print('[false]', flush=True); time.sleep(60)")
    with _examining._Worker(names=[], most=0, skip=0) as worker:
        assert list(worker.lines()) == [1, [False]]
        assert worker.outcome() == "no answer within 0 s"


def test_a_process_that_makes_no_calls_is_told(monkeypatch):
    monkeypatch.setattr(_examining, "CODE", "raise SystemExit('no memory')")
    with pytest.raises(OSError, match="the process that makes the calls ends Python with status 1; no memory"):
        list(_examining.examine_apart(["norm_gate"], 1))
