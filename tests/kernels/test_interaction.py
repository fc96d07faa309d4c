"""The Triton kernels of task interaction, compiled for GPUs: no spills, no atomics, limited shared memory."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="torch brings no Triton on this platform")

# Bytes of shared memory available to a block.
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
VARIANCE, THREE, ATTENTION = (False, False), (False, True), (True, True)
# (C, H = W) of a decoder level, dtype, (attention, energy), capabilities
LAUNCHES = [
    (384, 14, torch.float32, VARIANCE, (80, 90)),
    (384, 14, torch.bfloat16, VARIANCE, (90,)),
    (48, 112, torch.bfloat16, THREE, (80, 90)),
    (96, 56, torch.float32, VARIANCE, (80, 90)),
    (96, 56, torch.bfloat16, VARIANCE, (90, 100)),
    (192, 28, torch.float32, ATTENTION, (90,)),
]


def level_calls(channels: int, size: int, dtype: torch.dtype, form: tuple[bool, bool]) -> Callable[[], None]:
    """A level of task interaction, forward and backward."""
    from mtlkit.kernels import interaction as kernels

    attention, energy = form
    B, C, P = 24, channels, channels // 2
    x = torch.empty(B, C, size, size, dtype=dtype, device="meta")
    x = x.to(memory_format=torch.channels_last) if dtype == torch.bfloat16 else x
    weight, bias, vector = (torch.empty(shape, device="meta") for shape in ((P, C), (P,), (C,)))
    attn, factors = vector if attention else None, torch.empty(B, C, device="meta")

    def level() -> None:
        mean, variance, energies, pooled, *kept = kernels.reduce_forward(x, weight, bias, attn, energy, True)
        y = kernels.scale_forward(x, factors)
        kernels.scale_backward(y, x)
        sums = (mean, variance, energies if energy else None, pooled)
        kernels.reduce_backward(x, weight, bias, attn, mean, pooled, *kept, *sums, y, factors)

    return level


@pytest.mark.parametrize(("channels", "size", "dtype", "form", "capabilities"), LAUNCHES, ids=str)
def test_compiled(record, compiled, channels, size, dtype, form, capabilities):
    launches = record(level_calls(channels, size, dtype, form))
    assert len(launches) >= 5
    for launch in launches:
        for capability in capabilities:
            found = compiled(launch, capability)
            assert found.spills == 0, found
            if capability < 100:  # newer GPUs allocate tensor memory by an atomic integer instruction
                assert found.atomics == 0, found
            assert found.shared <= SHARED[capability], found
            if (channels, capability) == (96, 90):  # two programs of 8 warps per processor
                assert found.registers <= 128, found


def test_other_forms_compile(record, compiled):
    """Without a projection, without the part that scaling adds, and with 64-bit offsets."""
    from mtlkit.kernels import interaction as kernels

    def forms() -> None:
        x = torch.empty(2, 96, 28, 28, device="meta")
        channels, empty = torch.empty(2, 96, device="meta"), torch.empty(2, 0, device="meta")
        kernels.reduce_forward(x, None, None, None, False, False)
        kernels.reduce_backward(x, None, None, None, channels, empty, empty, empty, None, channels, None, None)
        wide = torch.empty(2, 32, 1 << 14, 1 << 13, dtype=torch.float16, device="meta")
        weight, bias = torch.empty(16, 32, device="meta"), torch.empty(16, device="meta")
        mean, _, _, pooled, *kept = kernels.reduce_forward(wide, weight, bias, None, False, True)
        kernels.reduce_backward(wide, weight, bias, None, mean, pooled, *kept, None, None, None, pooled)
        kernels.scale_backward(kernels.scale_forward(wide, mean), wide)

    launches = record(forms)
    assert {launch.arguments["WIDE"] for launch in launches} == {False, True}
    assert all(compiled(launch, 90).spills == 0 for launch in launches)


def gating_calls(batch: int, channels: int, alignment: bool, training: bool) -> Callable[[], None]:
    """The gates of a level, forward and backward."""
    from mtlkit.kernels.interaction import gating
    from mtlkit.testing import InteractionShape

    B, C, P, N, H, Q = batch, channels, channels // 2, 256, 32, 64 if alignment else 0
    inputs = InteractionShape(1, C, 1, 1, N, "alignment" if alignment else "variance").inputs()

    def meta(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta")

    def like(tensors) -> list:
        return [None if t is None else torch.empty_like(t, device="meta") for t in tensors]

    weights = like((*inputs.tim[2:12], *inputs.upa))
    sums = [meta(B, C), None if alignment else meta(B, C), meta(B) if alignment else None, meta(B, P)]
    signals = [meta(B), meta(B), meta(B) if alignment else None]
    kept = meta(2 * B * (N + C + Q) + 2 * N)
    results = [meta(B, C), meta(B, N), meta(B, 2), *signals, kept]
    call = ((B, C, P, N, H, Q), (0.7, 0.01, 1e-3), alignment, training, sums, meta(B, N))

    def level() -> None:
        gating.forward(*call, None, like(inputs.tim[12:14]), weights, results, meta(B, C), meta(B, N))
        outputs = [meta(B, C), meta(B, C), meta(B, N), meta(B, N), meta(B, 2), *signals]
        gating.backward(*call, None, weights, results, outputs, like((*sums, meta(B, N))), like(weights))

    return level


@pytest.mark.parametrize(
    ("batch", "channels", "alignment", "training", "capabilities"),
    [(24, 384, True, True, (80, 90, 100)), (64, 96, False, False, (90,))],
)
def test_gating_compiles(record, compiled, batch, channels, alignment, training, capabilities):
    launches = record(gating_calls(batch, channels, alignment, training))
    assert len(launches) == (11 if alignment else 9)
    for launch in launches:
        for capability in capabilities:
            found = compiled(launch, capability)
            assert found.spills == 0, found
            assert found.shared <= SHARED[capability], found
            print(found)


@pytest.mark.parametrize(
    "target", ["gfx942", *(pytest.param(target, marks=pytest.mark.slow) for target in ("gfx90a", "gfx1100"))]
)
def test_compiles_for_amd(record, compiled_for_amd, target):
    """The widest level in float32; with as many stages as on NVIDIA GPUs it would exceed 64 KB of shared memory."""
    launches = record(level_calls(384, 14, torch.float32, ATTENTION)) + record(gating_calls(64, 96, False, False))
    for launch in launches:
        found = compiled_for_amd(launch, target)
        assert found.shared <= 64 << 10, found
        print(found)
