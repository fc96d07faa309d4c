"""The check of GPU kernels at their first use, with norm_gate's CPU kernels in place of backend "cuda"."""

import threading
import warnings
from types import SimpleNamespace

import pytest
import torch

import mtlkit
from mtlkit import _native
from mtlkit.operators import _backends, _self_check
from mtlkit.operators.norm_gate import OPERATOR, cpu

pytestmark = pytest.mark.skipif(_native.C is None, reason=f"no compiled kernels: {_native.why_not}")

WRONG = r"norm_gate: another backend replaces 'cuda': its kernels failed .* in torch.float32 \({}.*mtlkit doctor"


def call(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x = torch.arange(30, dtype=dtype).view(5, 6)
    return mtlkit.ops.norm_gate(x, torch.full((6,), 2.0), None, x)


@pytest.fixture
def process(monkeypatch):
    """Forgets what was checked, like a new process."""

    def begin() -> None:
        for name in ("_passed", "_faults", "_told"):
            monkeypatch.setattr(_self_check, name, type(getattr(_self_check, name))())

    begin()
    return begin


@pytest.fixture
def gpu(process, monkeypatch, tmp_path):
    """Backend "cuda" of norm_gate: records its calls, and makes chosen errors."""
    stand_in = SimpleNamespace(**vars(cpu), calls=0, forward_fault=lambda t: t, backward_fault=lambda t: t)

    def forward(inputs, options, save):
        stand_in.calls += 1
        return tuple(map(stand_in.forward_fault, cpu.forward(inputs, options, save)))

    def backward(*arguments):
        return tuple(g if g is None else stand_in.backward_fault(g) for g in cpu.backward(*arguments))

    stand_in.forward, stand_in.backward = forward, backward
    monkeypatch.setenv("MTLKIT_SELF_CHECK", "on")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_backends, "_cuda_obstacle", lambda device: None)
    monkeypatch.setattr(OPERATOR, "served", ("cuda", "torch", "reference"))
    monkeypatch.setitem(OPERATOR.backends, "cuda", stand_in)
    return stand_in


def nan(t: torch.Tensor) -> torch.Tensor:
    t.view(-1)[-1] = float("nan")
    return t


def test_the_first_call_is_checked_and_no_other(gpu):
    expected = call()
    assert gpu.calls == 2
    call()
    assert gpu.calls == 3
    call(torch.bfloat16)  # another dtype
    assert gpu.calls == 5
    with mtlkit.use_backend("torch"):
        torch.testing.assert_close(call(), expected)


@pytest.mark.parametrize(
    ("direction", "wrong", "error"),
    [
        ("forward", lambda t: t.mul_(1.001), "y: relative error 1.0"),
        ("forward", nan, "y: relative error nan"),
        ("forward", torch.zero_, "y: relative error 1.0"),
        ("backward", lambda t: t + t.abs().max() * 1e-3, "dx: relative error"),
        ("backward", torch.zero_, "dx: relative error 1.0"),
    ],
)
def test_wrong_kernels_give_way_with_one_warning(gpu, direction, wrong, error):
    setattr(gpu, f"{direction}_fault", wrong)
    with pytest.warns(RuntimeWarning, match=WRONG.format(error)) as caught:
        got = call()
    assert len(caught) == 1
    calls = gpu.calls
    with mtlkit.use_backend("torch"):
        torch.testing.assert_close(got, call(), rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    assert gpu.calls == calls


def test_kernels_that_do_not_run_give_way(gpu):
    def fail(t):
        raise RuntimeError("no kernel image is available")

    gpu.forward_fault = fail
    with pytest.warns(RuntimeWarning, match=r"RuntimeError: no kernel image is available"):
        assert call().isfinite().all()


def test_wrong_kernels_that_are_asked_for_raise(gpu):
    gpu.forward_fault = nan
    with mtlkit.use_backend("cuda"):
        for _ in range(2):
            with pytest.raises(ValueError, match=r"'cuda' was requested but cannot run norm_gate: .*mtlkit doctor"):
                call()
    with pytest.warns(RuntimeWarning, match=WRONG.format("y")):  # not reported before
        call()


def test_switched_off(gpu, monkeypatch, process):
    monkeypatch.setenv("MTLKIT_SELF_CHECK", "off")
    call()
    assert gpu.calls == 1
    process()
    monkeypatch.setenv("MTLKIT_SELF_CHECK", "of")
    with pytest.raises(ValueError, match="MTLKIT_SELF_CHECK: expected 'on' or 'off', got 'of'"):
        call()


# --- no side effects --------------------------------------------------------------------------------------------------


def test_the_state_of_the_call_does_not_matter_nor_change(gpu, process):
    """Disabled gradients, autocast, modes, default device and dtype, and the random state."""
    from torch.utils.flop_counter import FlopCounterMode

    before = torch.get_rng_state()
    contexts = (
        torch.no_grad(),
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        torch.device("meta"),
        FlopCounterMode(display=False),
    )
    x = torch.arange(30.0).view(5, 6)
    for context in contexts:
        process()
        gpu.calls = 0
        with context:
            y = mtlkit.ops.norm_gate(x)
        assert y.isfinite().all()
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_check_once(gpu):
    barrier, found = threading.Barrier(4), []

    def work() -> None:
        barrier.wait()
        found.append(call())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gpu.calls == 5
    assert all(torch.equal(t, found[0]) for t in found)


def test_nothing_is_checked_while_a_graph_is_captured(gpu, monkeypatch):
    monkeypatch.setattr(_self_check, "_may_check", lambda tensor: False)
    call()
    assert gpu.calls == 1


@pytest.mark.parametrize("wrong", [False, True])
def test_a_compiled_call_is_checked_when_it_runs(gpu, wrong):
    torch._dynamo.reset()
    if wrong:
        gpu.backward_fault = torch.zero_
    x, weight = torch.randn(5, 6, requires_grad=True), torch.randn(6, requires_grad=True)
    compiled = torch.compile(lambda x, w: 2 * mtlkit.ops.norm_gate(x, w, None, x), backend="aot_eager", fullgraph=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        y = compiled(x, weight)
        gradients = torch.autograd.grad(y.square().sum(), (x, weight))
    assert gpu.calls == (1 if wrong else 2)
    assert [str(w.message) for w in caught if "mtlkit doctor" in str(w.message)] != [] or not wrong
    with mtlkit.use_backend("torch"):
        exact = 2 * mtlkit.ops.norm_gate(x, weight, None, x)
        for got, want in zip(
            (y, *gradients), (exact, *torch.autograd.grad(exact.square().sum(), (x, weight))), strict=True
        ):
            torch.testing.assert_close(got, want)
    if wrong:
        with mtlkit.use_backend("cuda"), pytest.raises(RuntimeError, match="'cuda' was requested but cannot run"):
            torch.ops.mtlkit.norm_gate("cuda", x.detach(), None, None, None, 1e-5)


# --- once per machine -------------------------------------------------------------------------------------------------


def test_what_passed_is_not_checked_by_another_process(gpu, process, tmp_path):
    call()
    (file,) = (tmp_path / "mtlkit" / "self_check").iterdir()
    assert "norm_gate, cuda, torch.float32" in file.read_text()
    process()
    gpu.calls = 0
    call()
    assert gpu.calls == 1


@pytest.mark.parametrize("change", ["_build", "_name"])
def test_another_build_or_gpu_is_checked(gpu, process, monkeypatch, change):
    call()
    process()
    gpu.calls = 0
    monkeypatch.setattr(_self_check, change, lambda *_: "another")
    call()
    assert gpu.calls == 2


def test_what_failed_is_checked_by_every_process(gpu, process, tmp_path):
    for _ in range(2):
        gpu.forward_fault = nan
        with pytest.warns(RuntimeWarning, match="doctor"):
            call()
        process()
    assert not (tmp_path / "mtlkit").exists()
    gpu.forward_fault = lambda t: t
    gpu.calls = 0
    call()
    assert gpu.calls == 2


def test_damaged_notes_are_made_again(gpu, process, tmp_path):
    call()
    (file,) = (tmp_path / "mtlkit" / "self_check").iterdir()
    whole = file.read_bytes()
    for damage in (b"", whole[:20], b"\xff\x00"):
        file.write_bytes(damage)
        process()
        gpu.calls = 0
        call()
        assert gpu.calls == 2
        assert file.read_bytes() == whole


@pytest.mark.parametrize("place", ["a file", "/proc/nothing"])
def test_a_cache_that_cannot_be_written_costs_nothing_but_time(gpu, process, tmp_path, monkeypatch, place):
    (tmp_path / "a file").write_text("x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / place))
    for _ in range(2):
        process()
        gpu.calls = 0
        call()
        assert gpu.calls == 2


def test_what_cannot_be_named_is_not_noted(gpu, process, monkeypatch, tmp_path):
    def unknown(device):
        raise RuntimeError("no such device")

    monkeypatch.setattr(_self_check, "_build", unknown)
    call()
    assert gpu.calls == 2
    assert not (tmp_path / "mtlkit").exists()


def test_build_and_driver_are_named(monkeypatch, tmp_path):
    assert len(_self_check._build()) == 64
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  999.1\nGCC version: 12\n")
    monkeypatch.setattr(_self_check, "DRIVERS", (str(version), str(tmp_path / "none")))
    assert _self_check._driver.__wrapped__().endswith("999.1")


@pytest.mark.parametrize(
    ("platform", "variables", "end"),
    [
        ("linux", {}, ".cache/mtlkit"),
        ("linux", {"XDG_CACHE_HOME": "/scratch/cache"}, "/scratch/cache/mtlkit"),
        ("darwin", {}, "Library/Caches/mtlkit"),
        ("win32", {"LOCALAPPDATA": "C:/Users/a"}, "C:/Users/a/mtlkit/cache"),
    ],
)
def test_the_cache_is_where_the_system_has_it(monkeypatch, platform, variables, end):
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(_self_check.sys, "platform", platform)
    assert _self_check._folder().as_posix().endswith(end)
