"""The options of commands that can run a network several times per image."""

import argparse


def add_passes(command: argparse.ArgumentParser) -> None:
    """Adds --sliding-window and --tta."""
    words = "predict masks of images larger than in training from overlapping windows at full resolution"
    command.add_argument("--sliding-window", action="store_true", help=words)
    words = "average over the image and its mirror images: 4 passes, 2 for mammograms"
    command.add_argument("--tta", action="store_true", help=words)
