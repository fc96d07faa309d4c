"""How kernels are split into programs, and the arithmetic of their launchers. Triton is not loaded."""

import random

import pytest
import torch

from mtlkit.kernels._launch import division, is_wide
from mtlkit.kernels.tables import (
    CHUNK_TOKENS,
    FILL_WARPS,
    FULL_WARPS,
    STATE_INTERVAL,
    Tiles,
    held,
    pixel_tiles,
    rank_tile,
    row_tiles,
    scan_tiles,
    split,
)

SMS = 132


def test_import_loads_no_triton(run_python):
    code = "import sys, mtlkit.kernels, mtlkit.kernels.tables, mtlkit.kernels._launch; print('triton' in sys.modules)"
    assert run_python("-c", code).stdout == "False\n"


@pytest.mark.parametrize("divisor", [2, 3, 7, 8, 49, 56, 224, 1000, 4096, 65537, 2**20 + 7, 2**30, 2**31 - 1])
def test_division_is_exact(divisor):
    multiplier, shift = division(divisor)
    assert -(1 << 31) <= multiplier < 1 << 31
    multiplier %= 1 << 32
    generator = random.Random(divisor)
    last = (1 << 31) - 1
    borders = [divisor * generator.randrange(last // divisor + 1) for _ in range(200)]
    positions = [0, last, *borders, *(b - 1 for b in borders), *(generator.randrange(1 << 31) for _ in range(200))]
    assert all((p * multiplier >> 32) >> shift == p // divisor for p in positions if 0 <= p <= last)


def test_wide_offsets_begin_at_31_bits():
    def image(channels: int) -> torch.Tensor:
        return torch.empty(3, channels, 1 << 10, 1 << 10, device="meta")

    assert not is_wide(image(2047), image(1))
    assert not is_wide(image(2048))  # the last element is at 2^31 - 1
    assert is_wide(image(1), image(2049))


@pytest.mark.parametrize("kind", ["forward", "backward"])
@pytest.mark.parametrize("directions", [1, 2])
def test_tiles_of_every_state_count(kind, directions):
    for states in range(1, 257):
        for scans in (1, 64, 4096):
            tiles = scan_tiles(kind, states, 96, scans, directions, SMS)
            assert states <= tiles.S * tiles.G < 2 * states
            assert tiles.G * tiles.BD == 32
            assert tiles.num_warps == tiles.BC * directions
            assert STATE_INTERVAL % tiles.T == 0
            assert STATE_INTERVAL // tiles.T % 2 == 0


def test_tiles_are_as_lean_as_the_fill_allows():
    """Four directions with 96 channels: three blocks of 32 channels per pair, 2 * 3 * B programs."""
    assert scan_tiles("forward", 16, 96, 2 * 32, 2, SMS).S == 4
    assert scan_tiles("forward", 16, 96, 2 * 64, 2, SMS).S == 8
    assert scan_tiles("forward", 16, 96, 2 * 256, 2, SMS).S == 8
    assert scan_tiles("backward", 16, 96, 2 * 256, 2, SMS).S == 4


@pytest.mark.parametrize("scans", [1, 4096])
@pytest.mark.parametrize("states", [1, 4, 8, 16, 32])
def test_forward_programs_leave_no_lane_idle(states, scans):
    """At the widths of MedMamba and VMamba, which are multiples of 32."""
    assert 32 % scan_tiles("forward", states, 96, scans, 2, SMS).channels == 0


@pytest.mark.parametrize("rank", [1, 3, 4, 5, 16, 24, 48])
def test_rows_of_the_time_step_hold_the_rank(rank):
    for states in (1, 16, 64):
        for scans in (1, 4096):
            forward, backward = (scan_tiles(kind, states, 96, scans, 2, SMS) for kind in ("forward", "backward"))
            rows = rank_tile("forward", rank, forward)
            assert rank <= rows < 2 * rank
            assert rank_tile("backward", rank, backward) >= rank
    assert rank_tile("backward", 4, Tiles(8, 4, 4, 4, 8, 8)) == 4
    assert rank_tile("backward", 5, Tiles(8, 4, 4, 4, 8, 8)) == 16


def test_weights_are_held_while_they_fit_the_registers():
    """A thread loads four channels forward and two backward; with 64 states, there are fewer channels than threads."""
    forward, backward = Tiles(8, 8, 2, 2, 16, 4), Tiles(8, 4, 4, 4, 8, 8)
    assert held("forward", 12, forward)
    assert not held("forward", 13, forward)
    assert held("backward", 4, backward)
    assert not held("backward", 5, backward)
    assert held("backward", 8, Tiles(8, 4, 16, 4, 2, 8))


def test_split_begins_where_the_processors_are_not_full():
    full = FILL_WARPS * SMS
    assert split(full, 3136, SMS) == 1
    assert split(full - 1, 3136, SMS) == FULL_WARPS * SMS // (full - 1) == 2
    assert split(24, 3136, SMS) == FULL_WARPS * SMS // 24 == 44
    assert split(1, 3136, SMS) == 3136 // CHUNK_TOKENS  # limited by the number of tokens
    assert split(1, 2 * CHUNK_TOKENS, SMS) == 2
    assert split(1, 2 * CHUNK_TOKENS - 1, SMS) == 1
    assert split(1, 1, SMS) == 1
    assert split(100, 3136, 16) == 1  # a smaller device is filled earlier


def test_rows_and_pixels_fit_a_program():
    for channels in (1, 7, 96, 768, 4096, 16384):
        rows, warps = row_tiles(channels)
        assert 1 <= warps <= 16
        assert warps & (warps - 1) == 0
        assert rows & (rows - 1) == 0
        pixels, width, warps = pixel_tiles(channels)
        assert width <= 64
        assert pixels & (pixels - 1) == 0
        assert warps == 4
