"""The command `mtlkit`."""

import argparse
import sys
import traceback
from collections.abc import Sequence

import mtlkit
from mtlkit import info
from mtlkit.cli import data, evaluate, train

EPILOG = """\
exit status:
  0  done
  1  the data have errors (data check)
  2  it could not be done; one sentence on standard error says what and where
"""


def parser() -> argparse.ArgumentParser:
    """The command line.

    Example:
        >>> from mtlkit.cli import parser
        >>> parser().parse_args(["data", "check", "busi"]).folder
        PosixPath('busi')
    """
    whole = argparse.ArgumentParser(
        prog="mtlkit",
        description=mtlkit.__doc__.splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"mtlkit {mtlkit.__version__}")
    whole.add_argument("--debug", action="store_true", help="show where in the code an error was raised")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser("info", help="what is active on this machine, what is not, and why")
    command.set_defaults(run=lambda _: info.main())
    data.add_commands(commands)
    train.add_command(commands)
    evaluate.add_command(commands)
    return whole


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        arguments: what follows the command's name, by default that of this process.

    Returns:
        The exit status; what went wrong stands in one sentence on standard error.

    Example:
        >>> from mtlkit.cli import main
        >>> status = main(["info"])  # doctest: +ELLIPSIS
        mtlkit ...
    """
    options = parser().parse_args(arguments)
    try:
        return options.run(options)
    except (KeyboardInterrupt, ImportError, ValueError, OSError, FloatingPointError) as error:
        if options.debug:
            traceback.print_exception(error)
        words, status = _sentence(error), 2
        if isinstance(error, KeyboardInterrupt):
            words, status = "interrupted", 130
        elif isinstance(error, ModuleNotFoundError):
            words = f"needs {error.name}, which is not installed: pip install 'mtlkit[train]'"
    print(f"mtlkit: {words}", file=sys.stderr)  # noqa: T201 - the command's own voice
    return status


def _sentence(error: BaseException) -> str:
    """The words of an error; what a process that loads data hands on is a traceback, with the words at its end."""
    words = str(error).strip()
    return words.splitlines()[-1].partition(": ")[2] if "Original Traceback" in words else words
