"""How the kernels are cut into programs: sizes of tiles by shape class, and when a long scan is split. Knows no Triton.

Nothing is tuned at run time. Any entry gives the same result within the policy's bounds; an entry decides the speed.
"""

from typing import NamedTuple

# State is kept for the backward pass every this many tokens.
CHECKPOINT_TOKENS = 32


def power_of_two(n: int) -> int:
    """The power of two that is n or next above it."""
    return 1 << (n - 1).bit_length()


class Tiles(NamedTuple):
    """A program's share of a scan; G * BD = 32 makes the lanes of a warp, and each warp has one group of channels."""

    T: int  # tokens of a step, a divisor of CHECKPOINT_TOKENS
    I: int  # states of a channel in a thread's registers  # noqa: E741 - the kernels' letter
    G: int  # lanes that share a channel's states
    BC: int  # groups of channels
    BD: int  # channels of a group, side by side on lanes
    num_warps: int

    @property
    def channels(self) -> int:
        """Channels of a program."""
        return self.BC * self.BD


# The most states of a channel in one thread's registers.
LANE_STATES = {"forward": 8, "backward": 4}


def scan_tiles(kind: str, states: int, directions: int) -> Tiles:
    """The tiles of a scan.

    Args:
        kind: "forward" or "backward".
        states: N.
        directions: those that a program walks at once, 2 in ss2d, 1 in selective_scan.
    """
    padded = power_of_two(states)
    lanes = min(32, max(1, padded // LANE_STATES[kind]))
    return Tiles(8, padded // lanes, lanes, 2, 32 // lanes, 2 * directions)


# A split adds a pass over the states, about 0.6 of a forward pass: it pays only where the SMs are far from full.
FILL_WARPS = 4  # warps of a processor below which a scan is split
TARGET_WARPS = 8  # warps of a processor that a split aims at
CHUNK_TOKENS = 64  # the least tokens of a chunk


def split(warps: int, tokens: int, processors: int) -> int:
    """Chunks that the tokens of a scan are cut into, each scanned by programs of its own.

    One where the warps of the unsplit launch, which grow with B, D and N, are FILL_WARPS or more for each processor;
    else as many as bring them to TARGET_WARPS, but none shorter than CHUNK_TOKENS.
    """
    if warps >= FILL_WARPS * processors:
        return 1
    return max(1, min(TARGET_WARPS * processors // warps, tokens // CHUNK_TOKENS))
