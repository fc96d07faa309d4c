"""The option of the commands that take a run's temperatures into account."""

import argparse


def add_no_calibrate(command: argparse.ArgumentParser) -> None:
    """Adds the option that leaves a network's probabilities as they are."""
    command.add_argument(
        "--no-calibrate",
        action="store_true",
        help="use the network's probabilities without the temperature that was fitted after training",
    )
