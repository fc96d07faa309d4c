"""The option of commands that apply a run's temperatures."""

import argparse


def add_no_calibrate(command: argparse.ArgumentParser) -> None:
    """Adds the option to skip calibration of a network's probabilities."""
    command.add_argument(
        "--no-calibrate",
        action="store_true",
        help="use the network's probabilities without the temperature that was fitted after training",
    )
