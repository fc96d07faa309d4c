"""How the kernels are cut into programs: sizes of tiles by shape class, and when a long scan is split. Knows no Triton.

Nothing is tuned at run time. Any entry gives the same result within the policy's bounds; an entry decides the speed.
"""

from typing import NamedTuple

# The tokens between two states that these kernels keep for the backward pass, which rebuilds those between them: 32
# would halve their memory and take three more instructions a state update. The C++ and CUDA kernels have their own
# interval, CHECKPOINT_TOKENS.
STATE_INTERVAL = 16


def power_of_two(n: int) -> int:
    """The power of two that is n or next above it."""
    return 1 << (n - 1).bit_length()


class Tiles(NamedTuple):
    """A program's share of a scan; the G * BD lanes of a warp hold a group of channels with all their states."""

    T: int  # tokens of a step, a divisor of STATE_INTERVAL, in the backward pass at most half of it
    S: int  # states of a channel in a thread's registers
    G: int  # lanes that share a channel's states
    BC: int  # groups of channels
    BD: int  # channels of a group, side by side on lanes
    num_warps: int

    @property
    def channels(self) -> int:
        """Channels of a program."""
        return self.BC * self.BD


# States of a channel in one thread's registers, leanest first: 8 take fewer instructions, 4 give more warps.
LANE_STATES = {"forward": (8, 4), "backward": (4,)}
# Warps of a program and direction: backward, partial sums shrink with their channels; forward, programs of few warps
# spread more evenly, and no more than 32 channels leave no lane idle at any width of MedMamba or VMamba.
WARPS = {"forward": 2, "backward": 4}

FULL_WARPS = 8  # warps of a processor that keep it busy
FILL_WARPS = 4  # warps of a processor below which a scan is split
CHUNK_TOKENS = 64  # the least tokens of a chunk


def scan_tiles(kind: str, states: int, channels: int, scans: int, directions: int, processors: int) -> Tiles:
    """The tiles of a scan: the leanest that fill the processors, else those of most threads.

    Args:
        kind: "forward" or "backward".
        states: N.
        channels: D, or those of a group.
        scans: images or sequences, times pairs of directions or groups of channels.
        directions: those that a program walks at once, 2 in ss2d, 1 in selective_scan.
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


# Weights of the time steps in a thread's registers, at most: those of R values for all its channels.
HELD_WEIGHTS = {"forward": 48, "backward": 8}


def held(kind: str, rank: int, tiles: Tiles) -> bool:
    """Whether a thread works out the time steps of all channels that it loads side by side, rather than of one."""
    channels = max(1, 2 * tiles.T * tiles.channels // (32 * tiles.num_warps))
    return rank * channels <= HELD_WEIGHTS[kind]


def rank_tile(kind: str, rank: int, tiles: Tiles) -> int:
    """Rows of a tile for the R values of the time step, at a step's tokens in both directions.

    In the backward pass of programs of up to 32 channels, where the weights are not held, as many values as threads or
    more: then there are as many columns as threads to add up their gradients, and Triton has each loaded once and
    passed on through shared memory, else by every thread that needs it.
    """
    padded = power_of_two(rank)
    if kind == "forward" or tiles.channels > 32 or held(kind, rank, tiles):
        return padded
    return max(32 * tiles.num_warps // (2 * tiles.T), padded)


def split(warps: int, tokens: int, processors: int) -> int:
    """Chunks that the tokens of a scan are cut into, each scanned by programs of its own.

    One where the warps of the unsplit launch, which grow with B, D and N, are FILL_WARPS or more for each processor: a
    split adds a pass over the states, about 0.6 of a forward pass, and pays only where the processors are far from
    full. Else as many as bring them to FULL_WARPS, but none shorter than CHUNK_TOKENS.
    """
    if warps >= FILL_WARPS * processors:
        return 1
    return max(1, min(FULL_WARPS * processors // warps, tokens // CHUNK_TOKENS))


def chunking(programs: int, tiles: Tiles, tokens: int, processors: int) -> tuple[int, int]:
    """(chunks, tiles of a chunk) of each of so many programs: `split`, in whole intervals of states that are kept."""
    steps, every = -(-tokens // tiles.T), STATE_INTERVAL // tiles.T
    chunks = split(programs * tiles.num_warps, tokens, processors)
    shortest = -(-steps // chunks)
    length = -(-shortest // every) * every
    return -(-steps // length), length


MAX_ROW_CHANNELS = 16384  # of norm_gate: a row lies in the registers of one program


def row_tiles(channels: int) -> tuple[int, int]:
    """(rows of a step, warps of a program) of norm_gate: at most 4096 elements, 8 to 32 a thread."""
    padded = power_of_two(channels)
    rows = max(1, min(16, 2048 // padded))
    return rows, max(1, min(16, rows * padded // 512))


def pixel_tiles(channels: int) -> tuple[int, int, int]:
    """(pixels, channels, warps) of a program of dwconv_silu: 4 elements a thread."""
    width = min(64, power_of_two(channels))
    return 512 // width if width >= 32 else 16, width, 4
