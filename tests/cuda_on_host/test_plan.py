"""Which kernel runs ss2d and how its tokens are split: the rule at its limits, and docs/gpu_kernels.md's tables."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mtlkit.testing import SS2D_SHAPES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "gpu_kernels.md").read_text()
HEADER = (ROOT / "csrc" / "cuda" / "ss2d" / "ss2d.h").read_text()
SHARED = 232_448  # bytes available to a block on an H200
H200 = (132, SHARED)
ROWS = {
    "medmamba_t_stage1": "56² × 96",
    "medmamba_t_stage2": "28² × 192",
    "medmamba_t_stage3": "14² × 384",
    "medmamba_t_stage4": "7² × 768",
    "mammo_4view_128": "128² × 96",
    "mammo_4view_64": "64² × 192",
    "vmamba_t_stage1": "56² × 96, N = 1",
}


def plan(kernels, sizes: tuple[int, ...], multiprocessors: int, backward: bool = False) -> tuple[int, int]:
    """The layout's index and the number of chunks for B, D, H, W, N, R."""
    plan = kernels.cuda_ss2d_plan(sizes=sizes, gpu=(multiprocessors, SHARED), backward=backward)
    return plan.layout, plan.chunks


def layouts(direction: str) -> dict[int, tuple[int, int, int]]:
    """States per lane, lanes per channel and channels per block, by index."""
    table = re.search(rf"MTLKIT_SS2D_{direction.upper()}_LAYOUTS\(X\)((?:.*\\\n)+.*)", HEADER)[1]
    return {int(i): tuple(map(int, row)) for i, *row in re.findall(r"X\((\d+), (\d+), (\d+), (\d+), \d+\)", table)}


def assert_documented(title: str, cell: Callable[[tuple[int, ...]], str]) -> None:
    """Checks that each cell of the page's table with this title equals `cell` of B, D, H, W, N, R."""
    table = re.search(rf"\| {title} \| batch 1 \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE)[1]
    documented = {row[0]: row[1:] for row in (line.strip("| ").split(" | ") for line in table.splitlines())}
    assert set(documented) == set(ROWS.values())
    for name, row in ROWS.items():
        s = SS2D_SHAPES[name]
        for batch, found in zip((1, 8, 32, 64), documented[row], strict=True):
            assert found == cell((batch, s.D, s.H, s.W, s.N, s.R)), f"{name}, batch {batch}"


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_blocks_as_documented(kernels, direction):
    def cell(sizes):
        plan = kernels.cuda_ss2d_plan(sizes=sizes, gpu=H200, backward=direction == "backward")
        blocks = sizes[0] * plan.pairs * plan.channel_blocks
        return f"{'·'.join(map(str, layouts(direction)[plan.layout]))}, {plan.chunks} × {blocks}"

    assert_documented(direction, cell)


def test_launches_as_documented(kernels):
    assert_documented(
        "pairs × slices × windows", lambda sizes: " × ".join(map(str, launches_of(sizes, kernels, backward=True)))
    )


@pytest.mark.parametrize("backward", [False, True])
def test_narrower_blocks_below_16_warps_a_multiprocessor(kernels, backward):
    """64 channels with 16 states in wide blocks: 16 warps forward, 32 backward."""
    wide, narrow = 4, 5
    warps = 32 if backward else 16
    sizes = (1, 64, 24, 24, 16, 3)
    assert plan(kernels, sizes, warps // 16, backward)[0] == wide
    assert plan(kernels, sizes, warps // 16 + 1, backward)[0] == narrow


def test_chunks_below_8_warps_a_multiprocessor(kernels):
    """64 channels with 16 states in narrow blocks: 32 warps."""
    sizes = (1, 64, 24, 24, 16, 3)
    assert plan(kernels, sizes, 4) == (5, 1)
    assert plan(kernels, sizes, 5) == (5, 3)


@pytest.mark.parametrize(("tokens", "chunks"), [(272, 1), (273, 3), (400, 3), (401, 4)])
def test_chunks_of_128_tokens_at_least_and_three_of_them(kernels, tokens, chunks):
    """Half a tile more than 256 or 384 tokens does not add a chunk."""
    assert plan(kernels, (1, 64, 1, tokens, 16, 3), 8) == (5, chunks)


@pytest.mark.parametrize(("tokens", "chunks"), [(144, 1), (145, 3), (192, 3), (384, 3), (401, 4)])
def test_chunks_of_64_tokens_for_8_warps_a_multiprocessor(kernels, tokens, chunks):
    """32 warps and 12 multiprocessors: three chunks fit or, with at least 128 tokens each, six."""
    assert plan(kernels, (1, 64, 1, tokens, 16, 3), 12) == (5, chunks)


def launches_of(sizes: tuple[int, ...], kernels, backward: bool) -> tuple[int, int, int]:
    """The number of pairs of directions, slices and windows into which a call with B, D, H, W, N, R is split."""
    plan = kernels.cuda_ss2d_plan(sizes=sizes, gpu=H200, backward=backward)
    longest = max(plan.chunk_tiles, plan.tiles - (plan.chunks - 1) * plan.chunk_tiles)
    return 2 // plan.pairs, -(-sizes[0] // plan.images), -(-longest // plan.window_tiles)


def test_windows_keep_the_parts_at_4_floats_an_element(kernels):
    """At 56 x 56 the parts need 4 x 35 / 16 = 8.75 floats per element of u, at 28 x 28 they need 4 x 38 / 32."""
    assert launches_of((32, 96, 56, 56, 16, 3), kernels, backward=True) == (1, 1, 3)
    assert launches_of((32, 192, 28, 28, 16, 6), kernels, backward=True) == (1, 1, 2)
    assert launches_of((32, 96, 56, 56, 16, 3), kernels, backward=False) == (1, 1, 1)


def test_one_pair_a_launch_of_few_warps_and_many_parts(kernels):
    """In wide blocks, the parts of 32 channels are 4 x 35 / 32 floats per element of u; in narrow ones they have 16
    warps."""
    wide, narrow = 4, 5
    for states, multiprocessors, expected in ((16, 2, (narrow, 2)), (16, 3, (wide, 1)), (9, 3, (narrow, 2))):
        sizes = (1, 32, 4, 4, states, 3)
        plan = kernels.cuda_ss2d_plan(sizes=sizes, gpu=(multiprocessors, SHARED), backward=True)
        assert (plan.layout, plan.pairs) == expected


@pytest.mark.parametrize(("batch", "slices"), [(8, 1), (16, 2), (32, 3), (64, 3)])
def test_slices_where_windows_cannot_be_shorter_and_each_slice_fills_the_gpu(kernels, batch, slices):
    """7 x 7 pixels are two tiles; an image has 48 blocks of 8 warps, and 132 multiprocessors need 2112 warps."""
    assert launches_of((batch, 768, 7, 7, 16, 24), kernels, backward=True) == (1, slices, 1)


def test_fewer_channels_a_block_where_shared_memory_is_small(kernels):
    found = []
    for shared in range(200_000, 40_000, -500):
        plan = kernels.cuda_ss2d_plan(sizes=(64, 768, 14, 14, 16, 24), gpu=(1, shared), backward=True)
        assert plan.layout == -1 or plan.padded_states >= 16
        found += [] if plan.layout in found else [plan.layout]
    assert found[:2] == [4, 5]


def test_forward_and_backward_keep_the_same_states(kernels):
    for states in (1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256):
        tiling = kernels.cuda_ss2d_tiling(states=states, rank=3, gpu=H200)
        assert tiling.states >= states
        for batch in (1, 64):
            sizes = (batch, 96, 56, 56, states, 3)
            for backward in (False, True):
                plan = kernels.cuda_ss2d_plan(sizes=sizes, gpu=H200, backward=backward)
                assert (plan.padded_states, plan.tiles) == (tiling.states, -(-56 * 56 // tiling.tokens))
