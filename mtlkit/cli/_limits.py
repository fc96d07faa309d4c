"""The limit on the pixels of an image, for commands that read images."""

import argparse

LESS_AT_ONCE = "lower --batch-size, or --max-pixels if an image is too large"
FEWER_PIXELS = "lower --max-pixels, which refuses large images"


def add_max_pixels(command: argparse.ArgumentParser) -> None:
    """Adds --max-pixels."""
    words = "refuse images of more pixels a frame; default 100 million"
    command.add_argument("--max-pixels", type=_count, metavar="N", help=words)


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text[:40]!r}")
    return int(text)
