"""Triton kernels compiled ahead of time: they fit the GPUs, use no atomics, do not spill, and have short loops.

Shapes are the first stages of MedMamba-T and VMamba-T at 224 x 224. Tensors on the meta device: nothing is computed.
"""

import re
from collections.abc import Callable

import pytest
import torch

from mtlkit.kernels.tables import STATE_INTERVAL

pytest.importorskip("triton", reason="torch brings no Triton on this platform")

CAPABILITIES = (80, 90, 100)
SHARED_BYTES = 163 * 1024  # per program, on the GPU with the least
AMD_TARGETS = ("gfx942", *(pytest.param(target, marks=pytest.mark.slow) for target in ("gfx90a", "gfx1100")))
AMD_SHARED_BYTES = 64 * 1024


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ss2d_calls(batch: int, states: int, rank: int, dtype: torch.dtype) -> tuple[Callable, Callable]:
    from mtlkit.kernels import ss2d

    D, H, W = 96, 56, 56
    u = meta(batch, H, W, D, dtype=dtype).permute(0, 3, 1, 2)
    x_dbl = meta(batch, H, W, 4, rank + 2 * states, dtype=dtype).permute(0, 3, 4, 1, 2)
    inputs = (u, x_dbl, meta(4, D, rank), meta(4, D), meta(4 * D, states), meta(4 * D))
    kept = meta(*ss2d.checkpoint_shape(u, inputs[4]))
    return lambda: ss2d.forward(*inputs, dtype, True), lambda: ss2d.backward(u, *inputs, kept)


def selective_scan_calls(batch: int, states: int, dtype: torch.dtype) -> tuple[Callable, Callable]:
    from mtlkit.kernels import selective_scan

    D, L = 384, 3136
    u, delta, z = (meta(batch, D, L, dtype=dtype) for _ in range(3))
    B, C = (meta(batch, states, L, dtype=dtype) for _ in range(2))
    inputs = (u, delta, meta(D, states), B, C, meta(D), z, meta(D))
    kept = meta(*selective_scan.checkpoint_shape(u, inputs[2]))
    return (
        lambda: selective_scan.forward(*inputs, True, True),
        lambda: selective_scan.backward(u, None, *inputs, kept, True),
    )


def directional_scan_calls(batch: int, states: int, dtype: torch.dtype, sequences: bool) -> tuple[Callable, Callable]:
    """In the form of selective_scan's kernels: four directions that share u, and a table."""
    from mtlkit.kernels import selective_scan

    K, D, L = 4, 96, 3136
    u, delta, out = (meta(batch, K, L, D, dtype=t).transpose(2, 3) for t in (dtype, torch.float32, torch.float32))
    u = u[:, :1].expand(-1, K, -1, -1)
    B, C = meta(batch, L, K, 3 + 2 * states, dtype=dtype).permute(0, 2, 3, 1).split((3, states, states), 2)[1:]
    inputs = (u, delta, meta(K * D, states), B, C, meta(K * D), None, meta(K * D))
    table, seq_idx = meta(K, L, dtype=torch.int32), meta(batch, L, dtype=torch.int32)
    initial = meta(batch, K * D, states)
    order = selective_scan.Order(table, *((seq_idx, initial) if sequences else ()))
    kept = meta(*selective_scan.checkpoint_shape(u, inputs[2]))
    dinitial = initial if sequences else None
    return (
        lambda: selective_scan.forward(*inputs, True, True, order, out),
        lambda: selective_scan.backward(u, None, *inputs, kept, True, order, out, dinitial),
    )


def norm_gate_calls(dtype: torch.dtype) -> tuple[Callable, Callable]:
    from mtlkit.kernels import norm_gate

    x, vector = meta(8, 56, 56, 96, dtype=dtype), meta(96)
    return (
        lambda: norm_gate.forward(x, vector, vector, x, 1e-5),
        lambda: norm_gate.backward(x, x, vector, vector, x, 1e-5),
    )


def dwconv_silu_calls(dtype: torch.dtype) -> tuple[Callable, Callable]:
    from mtlkit.kernels import dwconv_silu

    x, weight, bias = meta(8, 56, 56, 96, dtype=dtype).permute(0, 3, 1, 2), meta(96, 1, 3, 3), meta(96)
    return lambda: dwconv_silu.forward(x, weight, bias), lambda: dwconv_silu.backward(x, x, weight, bias)


def causal_conv1d_calls(dtype: torch.dtype, sequences: bool) -> tuple[Callable, Callable]:
    from mtlkit.kernels import causal_conv1d

    x, weight, bias = meta(8, 3136, 384, dtype=dtype).transpose(1, 2), meta(384, 4), meta(384)
    seq_idx = meta(8, 3136, dtype=torch.int32) if sequences else None
    initial = None if sequences else meta(8, 384, 3, dtype=dtype)
    return (
        lambda: causal_conv1d.forward(x, weight, bias, seq_idx, initial, True, x),
        lambda: causal_conv1d.backward(x, x, weight, bias, seq_idx, initial, True, x),
    )


# The kernels and, for each capability, the maximum of instructions per state update and lane in the innermost loop with
# exponentials, forward and backward; backward does not count the recomputation of states. None: no limit.
CASES = {
    "ss2d N=16 float32": (
        lambda: ss2d_calls(64, 16, 3, torch.float32),
        {80: (8.5, 25.2), 90: (8.3, 25.2), 100: (7.3, 23.2)},
    ),
    "ss2d N=16 bfloat16, one image": (lambda: ss2d_calls(1, 16, 3, torch.bfloat16), {90: (10.7, 25.8)}),
    "ss2d N=16 float32, R=12": (lambda: ss2d_calls(64, 16, 12, torch.float32), {80: (9.5, 28.5), 90: (9.3, 28)}),
    "ss2d N=16 float32, R=24": (lambda: ss2d_calls(64, 16, 24, torch.float32), {90: (11.2, 32.4)}),
    "ss2d N=1 bfloat16": (lambda: ss2d_calls(64, 1, 6, torch.bfloat16), {90: None}),
    "selective_scan N=16 float32": (
        lambda: selective_scan_calls(8, 16, torch.float32),
        {80: (9, 24.3), 90: (9.2, 24.8), 100: (8.9, 24)},
    ),
    "selective_scan N=16 float32, 64 sequences": (
        lambda: selective_scan_calls(64, 16, torch.float32),
        {80: (8.6, 24.3), 90: (8.6, 24.8), 100: (7.9, 24)},
    ),
    "directional_scan N=16 float32": (
        lambda: directional_scan_calls(8, 16, torch.float32, False),
        {80: (10.2, 26), 90: (10.2, 26), 100: (10.2, 26)},
    ),
    "directional_scan N=16 bfloat16, one image, sequences": (
        lambda: directional_scan_calls(1, 16, torch.bfloat16, True),
        {80: None, 90: None},
    ),
    "norm_gate bfloat16": (lambda: norm_gate_calls(torch.bfloat16), dict.fromkeys(CAPABILITIES)),
    "causal_conv1d bfloat16": (lambda: causal_conv1d_calls(torch.bfloat16, False), dict.fromkeys(CAPABILITIES)),
    "causal_conv1d float32, sequences": (lambda: causal_conv1d_calls(torch.float32, True), {90: None}),
    "dwconv_silu bfloat16": (lambda: dwconv_silu_calls(torch.bfloat16), dict.fromkeys(CAPABILITIES)),
}


def updates(launch) -> float:
    """State updates of a lane in a loop body of a scan: one step; forward, as many as lie between saved states."""
    a = launch.arguments
    directions = 2 if launch.kernel.__name__.startswith("ss2d") else 1
    steps = STATE_INTERVAL // a["T"] if launch.kernel.__name__.endswith("fwd_kernel") else 1
    return steps * directions * a["T"] * a["S"] * a["G"] * a["BC"] * a["BD"] / (32 * launch.options["num_warps"])


@pytest.mark.parametrize("case", list(CASES))
def test_compiles_lean_and_without_spills(case, record, compiled):
    build, targets = CASES[case]
    for number, call in enumerate(build()):
        for launch in record(call):
            for capability, bounds in targets.items():
                resources = compiled(launch, capability)
                line = str(resources)
                assert resources.spills == 0, line
                assert resources.atomics == 0, line
                assert resources.registers <= 255, line
                assert resources.shared <= SHARED_BYTES, line
                name = resources.kernel
                if re.fullmatch(r"(ss2d|selective_scan)_(fwd|bwd)_kernel", name):
                    steps = [loop for loop in resources.loops if loop.exponentials >= 8]
                    counted = min(loop.instructions for loop in steps) / updates(launch)
                    line += f" {counted:5.1f} instructions a state update"
                    if bounds:
                        assert counted <= bounds[number], line
                print(line)


@pytest.mark.parametrize("target", AMD_TARGETS)
@pytest.mark.parametrize("case", ["norm_gate bfloat16", "causal_conv1d float32, sequences", "dwconv_silu bfloat16"])
def test_compiles_for_amd(case, target, record, compiled_for_amd):
    for call in CASES[case][0]():
        for launch in record(call):
            found = compiled_for_amd(launch, target)
            assert found.spills == found.scratch == 0, found
            assert found.shared <= AMD_SHARED_BYTES, found


@pytest.mark.slow
@pytest.mark.parametrize("target", AMD_TARGETS)
@pytest.mark.parametrize("case", [case for case in CASES if re.search(r"scan|N=1 |one image", case)])
def test_scans_compile_for_amd(case, target, record, compiled_for_amd):
    """Some take a minute. Registers may be scarce on RDNA, which has half as many as CDNA."""
    for call in CASES[case][0]():
        for launch in record(call):
            found = compiled_for_amd(launch, target)
            assert found.shared <= AMD_SHARED_BYTES, found
            print(found)
