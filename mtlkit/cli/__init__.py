"""The command `mtlkit`."""

import argparse
import errno
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import mtlkit
from mtlkit import info
from mtlkit._extras import check_installed
from mtlkit._streams import READER_GONE, escape_unknown, give_up_output, reader_gone
from mtlkit._text import printable
from mtlkit.cli import ablate, bench, compare, data, evaluate, export, predict, train
from mtlkit.cli._outcomes import is_foreseen, printable_warnings, sentence, stopped, terminable

EPILOG = """\
exit status:
  0  done
  1  the data have errors (data check)
  2  it could not be done; one sentence on standard error says what and where
  130, 143  interrupted (SIGINT), terminated (SIGTERM)
  141  the reader of standard output has gone, as in `mtlkit info | head -1`
"""


class Parser(argparse.ArgumentParser):
    """Takes options by their whole names alone: `--f` is not `--force`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """As argparse's, in printable characters."""
        super().error(printable(message))


def parser() -> argparse.ArgumentParser:
    """The command line.

    Example:
        >>> from mtlkit.cli import parser
        >>> parser().parse_args(["data", "check", "busi"]).folder
        PosixPath('busi')
    """
    whole = Parser(
        prog="mtlkit",
        description=(mtlkit.__doc__ or "mtlkit").splitlines()[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"mtlkit {mtlkit.__version__}")
    whole.add_argument("--debug", action="store_true", help="show where in the code an error was raised")
    commands = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser("info", help="what is active on this machine, what is not, and why")
    command.set_defaults(run=lambda _: info.main(), command="info")
    data.add_commands(commands)
    train.add_command(commands)
    ablate.add_command(commands)
    evaluate.add_command(commands)
    compare.add_command(commands)
    predict.add_command(commands)
    export.add_command(commands)
    bench.add_command(commands)
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
    escape_unknown()
    options = argparse.Namespace(debug=False)
    try:
        try:
            options = parser().parse_args(arguments)
        except SystemExit:
            if reader_gone():
                return READER_GONE
            raise
        with terminable(), printable_warnings():
            if needs := getattr(options, "needs", None):
                check_installed(f"`mtlkit {options.command}`", *needs)
            status = options.run(options)
        return READER_GONE if reader_gone() else status
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_gone():
            return READER_GONE
        if not is_foreseen(error):
            raise
        raised, words, status = error, sentence(error, getattr(options, "memory", "")), 2
    except (KeyboardInterrupt, SystemExit) as error:
        raised, (words, status) = error, stopped(error)
    give_up_output()
    if isinstance(raised, OSError) and raised.filename is None and raised.errno in (errno.ENOSPC, errno.EDQUOT):
        words = f"standard output: {words}"  # errors of files name them
    if options.debug:
        traceback.print_exception(raised)
    print(f"mtlkit: {words}", file=sys.stderr)  # noqa: T201 - the command's own voice
    return status
