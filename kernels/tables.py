"""The division of kernels into programs: tile sizes by shape class, and when to split a long scan. Without Triton.

Nothing is tuned at run time. All entries give the same result within the policy's bounds; they differ in speed.
"""

from typing import NamedTuple

# Tokens between two states that are saved for the backward pass, which recomputes the states between them. 32 would
# halve the memory and take three more instructions per state update. The C++ and CUDA kernels have their own interval,
# CHECKPOINT_TOKENS.
STATE_INTERVAL = 16


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


class Tiles(NamedTuple):
    """A program's share of a scan; the G * BD lanes of a warp hold a group of channels with all their states."""

    T: int  # tokens per step, a divisor of STATE_INTERVAL, in the backward pass at most half of it
    S: int  # states of a channel in a thread's registers
    G: int  # lanes that share a channel's states
    BC: int  # groups of channels
    BD: int  # channels per group, on neighbouring lanes
    num_warps: int

    @property
    def channels(self) -> int:
        """Channels per program."""
        return self.BC * self.BD


# States of a channel in one thread's registers: 8 take the fewest instructions, 4 give more warps.
LANE_STATES = {"forward": (8, 4), "backward": (4,)}
# Warps per program and direction. Backward, more channels per program mean fewer partial sums. Forward, programs of few
# warps spread more evenly, and at most 32 channels leave no lane idle at any width of MedMamba or VMamba.
WARPS = {"forward": 2, "backward": 4}

FULL_WARPS = 8  # warps per processor that keep it busy
FILL_WARPS = 4  # warps per processor below which a scan is split
CHUNK_TOKENS = 64  # least tokens per chunk


def scan_tiles(kind: str, states: int, channels: int, scans: int, directions: int, processors: int) -> Tiles:
    """The tiles of a scan: those with the fewest instructions that fill the processors, else those with most threads.

    Args:
        kind: "forward" or "backward".
        states: N.
        channels: D, or the channels of a group.
        scans: images or sequences, times pairs of directions or groups of channels.
        directions: directions per program, 2 in ss2d, 1 in selective_scan.
        processors: streaming multiprocessors.
    """
    padded = power_of_two(states)
    for lane_states in LANE_STATES[kind]:
        lanes = min(32, max(1, padded // lane_states))
        groups = min(lanes, WARPS[kind]) if kind == "forward" else WARPS[kind]
        tokens = 8 if kind == "forward" or padded // lanes <= 4 else 4
        tiles = Tiles(tokens, padded // lanes, lanes, groups, 32 // lanes, groups * directions)
        if scans * -(-channels // tiles.channels) * tiles.num_warps >= FULL_WARPS * processors:
            break
    return tiles


# The most weights of the time steps in a thread's registers: R values for each of its channels.
HELD_WEIGHTS = {"forward": 48, "backward": 8}


def held(kind: str, rank: int, tiles: Tiles) -> bool:
    """Whether a thread computes the time steps of all contiguous channels that it loads, rather than of one."""
    channels = max(1, 2 * tiles.T * tiles.channels // (32 * tiles.num_warps))
    return rank * channels <= HELD_WEIGHTS[kind]


def rank_tile(kind: str, rank: int, tiles: Tiles) -> int:
    """Rows of a tile for the R values of the time step, at a step's tokens in both directions.

    In the backward pass of programs of up to 32 channels whose weights are not held, there are at least as many values
    as threads. Then each thread has a column of gradients to add, and Triton loads each value once and passes it on
    through shared memory, instead of loading it in every thread that needs it.
    """
    padded = power_of_two(rank)
    if kind == "forward" or tiles.channels > 32 or held(kind, rank, tiles):
        return padded
    return max(32 * tiles.num_warps // (2 * tiles.T), padded)


def split(warps: int, tokens: int, processors: int) -> int:
    """The number of chunks into which to cut the tokens of a scan; each chunk has its own programs.

    One if the unsplit launch has FILL_WARPS or more warps per processor: a split adds a pass over the states, about 0.6
    of a forward pass, and pays only if the processors are far from full. Else as many chunks as bring the launch to
    FULL_WARPS, but none shorter than CHUNK_TOKENS.
    """
    if warps >= FILL_WARPS * processors:
        return 1
    return max(1, min(FULL_WARPS * processors // warps, tokens // CHUNK_TOKENS))


def chunking(programs: int, tiles: Tiles, tokens: int, processors: int) -> tuple[int, int]:
    """(chunks, tiles per chunk), by `split`, with chunks of whole STATE_INTERVALs; `programs` is that of one chunk."""
    steps, every = -(-tokens // tiles.T), STATE_INTERVAL // tiles.T
    chunks = split(programs * tiles.num_warps, tokens, processors)
    shortest = -(-steps // chunks)
    length = -(-shortest // every) * every
    return -(-steps // length), length


MAX_ROW_CHANNELS = 16384  # of norm_gate: one program holds a row in registers


def row_tiles(channels: int) -> tuple[int, int]:
    """(rows per step, warps per program) of norm_gate: at most 4096 elements, 8 to 32 per thread."""
    padded = power_of_two(channels)
    rows = max(1, min(16, 2048 // padded))
    return rows, max(1, min(16, rows * padded // 512))


def pixel_tiles(channels: int) -> tuple[int, int, int]:
    """(pixels, channels, warps) of a program of dwconv_silu: 4 elements per thread."""
    width = min(64, power_of_two(channels))
    return 512 // width if width >= 32 else 16, width, 4
