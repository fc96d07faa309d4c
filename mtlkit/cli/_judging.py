"""The options of the commands that evaluate runs on a data set."""

import argparse

from mtlkit.cli._limits import add_max_pixels


def add_judging(command: argparse.ArgumentParser, *, examples: int, shown: str) -> None:
    """Adds the options for bootstrap, plots and reading of images; `shown` says which examples are shown."""
    add = command.add_argument
    add("--samples", type=int, default=2000, metavar="N", help="bootstrap samples; 0 for no intervals; default 2000")
    add("--seed", type=int, default=0, help="seed of the bootstrap and of t-SNE; default 0")
    add("--examples", type=int, default=examples, metavar="N", help=f"{shown}; default {examples}")
    add("--tsne", action="store_true", help="also plot the classifier's features by t-SNE")
    add("--batch-size", type=int, metavar="N", help="images at once; default: as in training")
    add("--device", metavar="NAME", help="cpu, cuda, ...; default: cuda if there is a GPU, else cpu")
    add("--skip-bad", action="store_true", help="leave out images that cannot be used")
    add_max_pixels(command)
