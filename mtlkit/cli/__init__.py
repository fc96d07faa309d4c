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
from mtlkit._text import nearest, printable
from mtlkit.cli import ablate, bench, compare, data, demo, doctor, evaluate, export, predict, profile, publish, train
from mtlkit.cli._outcomes import is_foreseen, printable_warnings, sentence, stopped, terminable
from mtlkit.cli.completion import PrintCompletion, PrintVersion

OVERVIEW = """\
mtlkit {version}: selective scans, task interaction and breast-imaging networks, on CPU and GPU

Try it on phantoms, from images to masks:
  mtlkit data synthesize ultrasound phantoms/busi
  mtlkit train demo --data phantoms/busi --out runs/demo
  mtlkit evaluate runs/demo --out report
  mtlkit predict runs/demo phantoms/busi/benign --out masks
  mtlkit demo              all of that, and real ultrasound, in one command

Look around:
  mtlkit info              what runs on this machine
  mtlkit doctor            whether it computes the right numbers
  mtlkit --help            all commands
  mtlkit help COMMAND      the options of one, with examples
"""
EPILOG = """\
exit status:
  0  done
  1  the data set has errors (data check), or a kernel is wrong (doctor)
  2  the command failed; one sentence on standard error says why
  130, 143  interrupted (SIGINT), terminated (SIGTERM)
  141  the reader of standard output has gone, as in `mtlkit info | head -1`
"""


class Parser(argparse.ArgumentParser):
    """A parser that does not accept abbreviated options: `--f` is not `--force`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """The error of argparse, with control characters escaped."""
        super().error(printable(message))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """The check of argparse, which also suggests the closest choice."""
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            if meant := nearest(str(value), map(str, action.choices or ())):
                error.message = f"invalid choice: {value!r}; did you mean {meant!r}?"
            raise


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
    whole.add_argument("--version", action=PrintVersion)
    whole.add_argument("--print-completion", action=PrintCompletion)
    whole.add_argument("--debug", action="store_true", help="show the traceback of an error")
    whole.set_defaults(run=show_overview)
    commands = whole.add_subparsers(title="commands", metavar="COMMAND")
    command = commands.add_parser("info", help="show which backends this machine can use, and why not the others")
    command.set_defaults(run=lambda _: info.main(), command="info")
    data.add_commands(commands)
    train.add_command(commands)
    ablate.add_command(commands)
    evaluate.add_command(commands)
    compare.add_command(commands)
    predict.add_command(commands)
    export.add_command(commands)
    publish.add_command(commands)
    bench.add_command(commands)
    profile.add_command(commands)
    demo.add_command(commands)
    doctor.add_command(commands)
    return whole


def show_overview(_: argparse.Namespace) -> int:
    """`mtlkit` alone."""
    print(OVERVIEW.format(version=mtlkit.__version__), end="")  # noqa: T201 - the requested output
    return 0


def spelt_out(arguments: Sequence[str]) -> list[str]:
    """The arguments with `help COMMAND` as `COMMAND --help`.

    Example:
        >>> from mtlkit.cli import spelt_out
        >>> spelt_out(["help", "data", "check"])
        ['data', 'check', '--help']
    """
    return [*arguments[1:], "--help"] if arguments[:1] in (["help"], ("help",)) else list(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        arguments: the arguments after `mtlkit`, by default those of this process.

    Returns:
        The exit status; errors are one sentence on standard error.

    Example:
        >>> from mtlkit.cli import main
        >>> status = main(["info"])  # doctest: +ELLIPSIS
        mtlkit ...
    """
    escape_unknown()
    options = argparse.Namespace(debug=False)
    try:
        try:
            options = parser().parse_args(spelt_out(sys.argv[1:] if arguments is None else arguments))
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
        memory, command = (getattr(options, name, "") for name in ("memory", "command"))
        raised, words, status = error, sentence(error, memory, command), 2
    except (KeyboardInterrupt, SystemExit) as error:
        raised, (words, status) = error, stopped(error)
    give_up_output()
    if isinstance(raised, OSError) and raised.filename is None and raised.errno in (errno.ENOSPC, errno.EDQUOT):
        words = f"standard output: {words}"  # errors of files name them
    if options.debug:
        traceback.print_exception(raised)
    print(f"mtlkit: {words}", file=sys.stderr)  # noqa: T201 - the command's own voice
    return status
