"""The command `mtlkit`."""

import argparse
from collections.abc import Sequence

import mtlkit
from mtlkit import info


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        arguments: what follows the command's name, by default that of this process.

    Returns:
        The exit status.

    Example:
        >>> from mtlkit.cli import main
        >>> status = main(["info"])  # doctest: +ELLIPSIS
        mtlkit ...
    """
    parser = argparse.ArgumentParser(prog="mtlkit", description=mtlkit.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"mtlkit {mtlkit.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser("info", help="what is active on this machine, what is not, and why")
    command.set_defaults(run=info.main)
    return parser.parse_args(arguments).run()
