"""The choice of a backend: the requested one, the automatic one, and the error if a backend cannot run."""

from types import SimpleNamespace

import pytest
import torch

import mtlkit
from mtlkit import _native
from mtlkit.operators import _backends, _launch
from mtlkit.testing import InteractionShape, SS2DShape

SHAPE = SS2DShape(1, 4, 3, 3, 2, 1)
CPU, META = torch.device("cpu"), torch.device("meta")
SERVED = ("cpu", "torch", "reference")


def choice(served=SERVED, device=CPU, **limits: str) -> str:
    return _backends.choose("op", served, device, limits.get)


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
        ("cuda", CPU, "it does not implement op; backends that do: cpu, torch, reference"),
        ("triton", CPU, "it does not implement op"),
        ("cpu", META, "it runs on the CPU, but the tensors are on meta"),
    ],
)
def test_a_request_that_cannot_be_met_says_why(backend, device, reason):
    with mtlkit.use_backend(backend), pytest.raises(ValueError, match=f"{backend}.*cannot run op: {reason}"):
        choice(device=device)


def test_a_request_for_kernels_that_are_not_built_names_the_fix(monkeypatch):
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
    states = _backends.describe()
    assert [state.name for state in states] == list(_backends.BACKENDS)
    assert all(state.detail for state in states)
    assert all(state.active or state.fix or "no operator" in state.detail for state in states)


# --- GPU backends where they cannot run -------------------------------------------------------------------------------

GPU = torch.device("cuda", 0)
ALL = ("cpu", "cuda", "triton", "torch", "reference")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """An NVIDIA GPU as described by torch, and mtlkit with CUDA kernels; `gpu(8, 6)` sets its compute capability."""

    def of(*capability: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA Example")
    monkeypatch.setattr(_native, "C", SimpleNamespace(**vars(_native.C) | {"cuda": True, "cuda_archs": "80, 90+PTX"}))
    of(9, 0)
    return of


@pytest.mark.parametrize(
    ("backend", "reason"),
    [("cuda", "it runs on NVIDIA GPUs, but the tensors are on cpu"), ("triton", "it runs on GPUs")],
)
def test_gpu_backends_refuse_tensors_on_the_cpu(backend, reason, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    u, rows, A = torch.randn(1, 4, 5), torch.randn(1, 2, 5), -torch.rand(4, 2)
    level = InteractionShape(2, 4, 3, 3, 5).inputs()
    calls = {
        "ss2d": lambda: mtlkit.ops.ss2d(**SHAPE.inputs()),
        "selective_scan": lambda: mtlkit.ops.selective_scan(u, u, A, rows, rows),
        "causal_conv1d": lambda: mtlkit.ops.causal_conv1d(u, torch.randn(4, 3)),
        "norm_gate": lambda: mtlkit.ops.norm_gate(u),
        "dwconv_silu": lambda: mtlkit.ops.dwconv_silu(u[None], torch.randn(1, 1, 3, 3)),
        "tim_pool": lambda: mtlkit.ops.tim_pool(u[None], torch.randn(3, 1), torch.randn(3)),
        "tim_modulate": lambda: mtlkit.ops.tim_modulate(u[None], torch.rand(1, 1), torch.rand(1, 1)),
        "tim": lambda: mtlkit.ops.tim(*level[:3]),
        "upa_stats": lambda: mtlkit.ops.upa_stats(level.x, level.x, level.f, level.f),
        "upa": lambda: mtlkit.ops.upa(level.x, level.x, level.f, level.f, level.upa),
        "task_interaction": lambda: mtlkit.ops.task_interaction(*level),
    }
    for op, call in calls.items():
        with mtlkit.use_backend(backend), pytest.raises(ValueError, match=f"{backend}.*cannot run {op}: {reason}"):
            call()


def test_a_build_without_cuda_names_the_fix(gpu, monkeypatch):
    monkeypatch.setattr(_native.C, "cuda", False)
    fix = r"built without CUDA; reinstall with nvcc available: MTLKIT_CUDA=on pip install -e \."
    with mtlkit.use_backend("cuda"), pytest.raises(ValueError, match=fix):
        choice(served=ALL, device=GPU)
    assert choice(served=ALL, device=GPU) == "triton"
    monkeypatch.setattr(_native, "C", None)
    with mtlkit.use_backend("cuda"), pytest.raises(ValueError, match=fix):
        choice(served=ALL, device=GPU)


@pytest.mark.parametrize(
    ("capability", "archs", "reason"),
    [
        ((7, 0), "80, 90+PTX", r"it needs compute capability 7\.5, and NVIDIA Example has 7\.0"),
        ((7, 5), "80, 90+PTX", r"compiled for 80, 90\+PTX, and NVIDIA Example has 7\.5; .* MTLKIT_CUDA_ARCHS=75 pip"),
        ((8, 0), "75, 86, 90+PTX", r"and NVIDIA Example has 8\.0; .*=80 pip"),
        ((12, 1), "75, 80, 90", r"and NVIDIA Example has 12\.1; .*=121 pip"),
    ],
)
def test_a_gpu_without_code_is_named(gpu, monkeypatch, capability, archs, reason):
    gpu(*capability)
    monkeypatch.setattr(_native.C, "cuda_archs", archs)
    with mtlkit.use_backend("cuda"), pytest.raises(ValueError, match=reason):
        choice(served=ALL, device=GPU)
    assert choice(served=ALL, device=GPU) == "triton"


@pytest.mark.parametrize(
    ("capability", "archs"),
    [
        *((capability, "80, 90+PTX") for capability in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))),
        ((7, 5), "75, 80, 90+PTX"),
        ((12, 1), "75, 80, 120+PTX"),
        ((12, 1), "120"),
    ],
)
def test_a_gpu_that_has_code_gets_the_cuda_kernels(gpu, monkeypatch, capability, archs):
    gpu(*capability)
    monkeypatch.setattr(_native.C, "cuda_archs", archs)
    assert choice(served=ALL, device=GPU) == "cuda"


def test_gpus_of_other_vendors_get_triton(gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.3")
    assert choice(served=ALL, device=GPU) == "triton"
    with mtlkit.use_backend("cuda"), pytest.raises(ValueError, match="this torch is built for AMD GPUs; use triton"):
        choice(served=ALL, device=GPU)
    states = {state.name: state for state in _backends.describe()}
    assert "NVIDIA" in states["cuda"].detail
    assert not states["cuda"].active
    assert not states["cuda"].fix


def test_without_triton_the_fix_is_named(gpu, monkeypatch):
    monkeypatch.setattr(_backends, "find_spec", lambda name: None)
    with mtlkit.use_backend("triton"), pytest.raises(ValueError, match="not installed; pip install triton"):
        choice(served=ALL, device=GPU)
    monkeypatch.setattr(_native.C, "cuda", False)
    assert choice(served=ALL, device=GPU) == "torch"


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_launch_that_fails_says_what_cuda_says(gpu, monkeypatch, direction):
    """On CPU tensors, with launchers that return CUDA's status."""
    text = "too many resources requested for launch"
    answers = {"cuda_ss2d_forward": 0, "cuda_ss2d_backward": 0} | {f"cuda_ss2d_{direction}": 701}
    for name, status in answers.items():
        monkeypatch.setattr(_native.C, name, lambda status=status, **arguments: status, raising=False)
    monkeypatch.setattr(_native.C, "cuda_error_string", {701: text}.get, raising=False)
    numbers = ("tiles", "channel_blocks", "chunk_tiles", "chunks", "images", "window_tiles", "pixels", "pairs")
    plan = SimpleNamespace(layout=0, padded_states=2, **dict.fromkeys(numbers, 1))
    monkeypatch.setattr(_native.C, "cuda_ss2d_plan", lambda **arguments: plan, raising=False)
    tiling = SimpleNamespace(states=2, tokens=16)
    monkeypatch.setattr(_native.C, "cuda_ss2d_tiling", lambda **arguments: tiling, raising=False)
    monkeypatch.setattr(_backends, "_cuda_obstacle", lambda device: None)
    monkeypatch.setattr(_launch, "gpu", lambda device: (132, 227 << 10))
    with mtlkit.use_backend("cuda"), pytest.raises(RuntimeError, match=f"mtlkit: CUDA error 701: {text}"):
        mtlkit.ops.ss2d(**SHAPE.inputs(requires_grad=True)).sum().backward()


def test_the_state_of_a_gpu_that_is_too_old(gpu, monkeypatch):
    gpu(7, 5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    states = {state.name: state for state in _backends.describe()}
    assert not states["cuda"].active
    assert "NVIDIA Example has 7.5" in states["cuda"].detail
    assert states["triton"].active
