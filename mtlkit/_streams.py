"""Standard output: closed readers, full disks, and characters that its encoding lacks."""

import io
import os
import select
import signal
import sys

READER_GONE = 128 + signal.SIGPIPE  # the exit status


def reader_gone() -> bool:
    """Returns whether the reader of standard output has closed it; if so, discards all further output."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # not a file
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
    """Makes standard output write characters that its encoding lacks as escapes, instead of raising an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def give_up_output() -> None:
    """Flushes standard output; if that fails, for example on a full disk, discards the rest."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # not a file
        return
    try:
        sys.stdout.flush()
    except OSError:
        _to_nowhere(output)


def _to_nowhere(output: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
