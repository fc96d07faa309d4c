"""Standard output: what to do when its reader has gone, and with characters that it cannot show."""

import io
import os
import select
import signal
import sys

READER_GONE = 128 + signal.SIGPIPE  # the exit status


def reader_gone() -> bool:
    """Whether nobody reads standard output any more; what is left to be written goes nowhere then."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # it is no file
        return False
    try:
        sys.stdout.flush()
        state = select.poll()
        state.register(output, 0)
        gone = any(event & select.POLLERR for _, event in state.poll(0))
    except BrokenPipeError:
        gone = True
    if gone:
        _to_nowhere(output)
    return gone


def escape_unknown() -> None:
    """From now on, characters that the encoding of standard output lacks are written as escapes, and raise nothing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def give_up_output() -> None:
    """Lets what is left to be written to standard output go nowhere where it cannot be written, as to a full disk."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # it is no file
        return
    try:
        sys.stdout.flush()
    except OSError:
        _to_nowhere(output)


def _to_nowhere(output: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
