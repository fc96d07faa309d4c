"""Launches of kernels: repeatability, the current stream and GPU, CUDA graphs, more than 2^31 elements."""

import pytest
import torch

import mtlkit
from harness.calls import DTYPES, NAMES, assert_same, one_of_each, scan_call, ss2d_call
from mtlkit.operators import _launch
from mtlkit.testing import SS2D_SHAPES, SelectiveScanShape, SS2DShape, assert_accurate

pytestmark = pytest.mark.gpu

RUNS = 20
SLEEP = 200_000_000  # clock cycles, about a tenth of a second
GIB = 1 << 30
BATCHED = {
    "ss2d": ss2d_call(SS2DShape(16, 96, 28, 28, 16, 6)),
    "ss2d, bfloat16": ss2d_call(SS2DShape(16, 96, 28, 28, 16, 6), torch.bfloat16),
    "ss2d, one image": ss2d_call(SS2D_SHAPES["medmamba_t_stage1"]),
    "ss2d, one state": ss2d_call(SS2D_SHAPES["vmamba_t_stage1"]),
    "selective_scan": scan_call(SelectiveScanShape(4, 384, 784, 16, G=4)),
}


@pytest.mark.parametrize("name", [*NAMES, *BATCHED])
def test_repeats_bit_by_bit(name, backend, device):
    call = (one_of_each() | BATCHED)[name]
    first = call.run(device)
    for _ in range(RUNS - 1):
        assert_same(call.run(device), first)


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_runs_on_the_current_stream(name, backend, device):
    """Kernels wait for earlier work on their stream: an argument that is computed late is used correctly."""
    call = one_of_each()[name]
    leaves, wanted = call.leaves(device), call.run(device)
    first = next(iter(leaves.values()))
    numbers, stream = first.detach().clone(), torch.cuda.Stream(device)
    with torch.no_grad():
        first.zero_()
    torch.cuda.synchronize(device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SLEEP)
        with torch.no_grad():
            first.copy_(numbers)
        got = call.results(leaves)
    torch.cuda.synchronize(device)
    assert_same(got, wanted)


@pytest.mark.parametrize("name", ["ss2d", "ss2d, one image", "selective_scan"])
def test_two_streams_at_a_time(name, backend, device):
    calls = [BATCHED[name], BATCHED[name]._replace(inputs={n: t.roll(1, -1) for n, t in BATCHED[name].inputs.items()})]
    leaves = [call.leaves(device) for call in calls]
    wanted = [call.results(given) for call, given in zip(calls, leaves, strict=True)]
    streams = [torch.cuda.Stream(device) for _ in calls]
    torch.cuda.synchronize(device)
    got = [[], []]
    for _ in range(5):
        for i, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                got[i].append(calls[i].results(leaves[i]))
    torch.cuda.synchronize(device)
    for results, exact in zip(got, wanted, strict=True):
        for result in results:
            assert_same(result, exact)


# --- CUDA graphs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_graph_of_forward_and_backward(name, dtype, backend, device):
    """A captured graph, replayed with other values in the same memory, gives the bits of a direct call."""
    leaves = one_of_each(dtype)[name].leaves(device)
    call = one_of_each(dtype)[name]
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            call.results(leaves)
    torch.cuda.current_stream(device).wait_stream(side)
    weights = call.weights(call.function(**leaves))

    def step() -> dict[str, torch.Tensor]:
        outputs = call.function(**leaves)
        gradients = torch.autograd.grad(list(outputs.values()), list(leaves.values()), weights)
        return outputs | dict(zip((f"d{n}" for n in leaves), gradients, strict=True))

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (1, 2):
        other = one_of_each(dtype, seed)[name]
        with torch.no_grad():
            for n, t in leaves.items():
                t.copy_(other.inputs[n])
        graph.replay()
        assert_same({n: t.detach().clone() for n, t in captured.items()}, other.run(device))


@pytest.mark.parametrize("name", ["ss2d", "selective_scan", "norm_gate", "dwconv_silu"])
def test_compiled_with_graphs(name, backend, device):
    call = one_of_each()[name]
    compiled = call._replace(function=torch.compile(call.function, mode="reduce-overhead", fullgraph=True))
    for seed in range(4):  # two to warm up, one to capture, one to replay
        torch.compiler.cudagraph_mark_step_begin()
        inputs = one_of_each(seed=seed)[name].inputs
        got = compiled._replace(inputs=inputs).run(device)
        assert_same({n: t.clone() for n, t in got.items()}, call._replace(inputs=inputs).run(device))


# --- GPUs -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@pytest.mark.parametrize("name", NAMES)
def test_on_another_gpu_than_the_current_one(name, backend):
    other = torch.device("cuda", 1)
    with torch.cuda.device(0):
        one_of_each()[name].check(other)
        assert torch.cuda.current_device() == 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_tensors_on_two_gpus(backend):
    inputs = one_of_each()["ss2d"].leaves("cuda:0")
    with pytest.raises(ValueError, match="x_dbl: expected device cuda:0, where u is, got cuda:1"):
        mtlkit.ops.ss2d(**inputs | {"x_dbl": inputs["x_dbl"].to("cuda:1")})


@pytest.mark.skipif(torch.version.hip is not None, reason="the CUDA kernels are for NVIDIA GPUs")
def test_a_launch_that_fails_says_why_and_leaves_the_gpu_fit(device, monkeypatch):
    """The plan needs more shared memory per block than the GPU has."""
    monkeypatch.setattr(_launch, "gpu", lambda device: (132, GIB))
    with mtlkit.use_backend("cuda"):
        with pytest.raises(RuntimeError, match=r"mtlkit: CUDA error \d+: \w+"):
            ss2d_call(SS2DShape(1, 64, 4, 4, 16, 6000)).run(device)
        monkeypatch.undo()
        one_of_each()["ss2d"].check(device)


# --- beyond 2^31 elements ---------------------------------------------------------------------------------------------


def room(gibibytes: int) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gibibytes * GIB:
        pytest.skip(f"needs {gibibytes} GiB of free GPU memory, and {free / GIB:.0f} are free")


def test_an_image_beyond_2_31_elements(backend, device):
    """The last channels, computed as a small image, give the same result as among all channels."""
    D, height, width, few = 640, 1900, 1800, 2
    assert D * height * width > 1 << 31
    room(60)
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=device, dtype=torch.bfloat16)

    inputs = {
        "u": normal(1, height, width, D).permute(0, 3, 1, 2),
        "x_dbl": normal(1, height, width, 4, 3).permute(0, 3, 4, 1, 2),
        "dt_weight": normal(4, D, 1).float(),
        "dt_bias": normal(4, D).float() - 3,
        "A_logs": normal(4, D, 1).float(),
        "Ds": normal(4, D).float(),
    }

    def last(t: torch.Tensor, name: str) -> torch.Tensor:
        return t[:, -few:].clone() if name != "x_dbl" else t

    def flat(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return given | {"A_logs": given["A_logs"].flatten(0, 1), "Ds": given["Ds"].flatten()}

    with torch.no_grad():
        y = mtlkit.ops.ss2d(**flat(inputs))[:, -few:].clone()
        exact = mtlkit.ops.ss2d(**flat({n: last(t, n) for n, t in inputs.items()}), out_dtype=torch.float32)
    assert_accurate("y", y, exact.double(), exact.to(torch.bfloat16))
    u = inputs["u"].requires_grad_()
    (du,) = torch.autograd.grad(mtlkit.ops.ss2d(**flat(inputs)).sum(dtype=torch.float32), u)
    du = du[:, -few:].clone()
    part = {n: last(t.detach(), n) for n, t in inputs.items()}
    part["u"] = part["u"].float().requires_grad_()
    (exact,) = torch.autograd.grad(mtlkit.ops.ss2d(**flat(part)).sum(), part["u"])
    assert_accurate("du", du, exact.double(), exact.to(torch.bfloat16), gradient=True)


def test_sequences_beyond_2_31_elements(backend, device):
    """The last sequence by itself gives the same result as among all sequences."""
    B, D, L = 3, 1024, 800_000
    assert B * D * L > 1 << 31
    room(50)
    generator = torch.Generator(device).manual_seed(0)
    u = torch.randn(B, D, L, generator=generator, device=device, dtype=torch.bfloat16)
    rows = torch.randn(B, 1, L, generator=generator, device=device, dtype=torch.bfloat16)
    A = -torch.rand(D, 1, generator=generator, device=device)

    def scan(u: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return mtlkit.ops.selective_scan(u, u, A, rows, rows, delta_softplus=True)

    with torch.no_grad():
        among_all = scan(u, rows)[-1:].clone()
        alone = scan(u[-1:].clone(), rows[-1:].clone())
    assert_accurate("out", among_all, alone.double(), alone)
