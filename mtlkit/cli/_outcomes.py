"""How a command ends: one sentence with the option that helps, and the exit status."""

import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mtlkit._text import printable
from mtlkit.errors import (
    CheckpointError,
    DataError,
    ExistsError,
    MasksNeededError,
    TooLargeError,
    UnfinishedError,
    UnusableError,
)

HINTS = {
    ExistsError: "--force overwrites it",
    UnfinishedError: "`mtlkit train --resume` goes on with it",
    CheckpointError: "--force begins the run again",
    UnusableError: "--skip-bad leaves it out",
    MasksNeededError: "--masks names it",
    TooLargeError: "--max-pixels raises the limit",
}
STOPPED = {128 + signal.SIGINT: "interrupted", 128 + signal.SIGTERM: "terminated"}


def sentence(error: BaseException) -> str:
    """The words of an error, and the option that helps."""
    if isinstance(error, ModuleNotFoundError):
        return f"needs {error.name}, which is not installed: pip install 'mtlkit[train]'"
    words = str(error).strip()
    if "Original Traceback" in words:  # from a process that loads data: a traceback, with the words at its end
        words = words.rpartition(f"{type(error).__name__}: ")[2]
    words = printable(words, keep="" if isinstance(error, DataError) else "\n")
    if isinstance(error, ExistsError) and error.resumable:
        return f"{words}; --resume goes on with it, --force begins again"
    hints = [hint for kind, hint in HINTS.items() if isinstance(error, kind)][:1]
    if (place := getattr(error, "resumable", "")) and not isinstance(error, FloatingPointError):
        hints.append(f"--resume goes on from {place}")
    return "; ".join([words, ", ".join(hints)] if hints else [words])


def stopped(error: KeyboardInterrupt | SystemExit) -> tuple[str, int]:
    """What to say when a signal ended the work, and the exit status.

    Raises:
        SystemExit: another reason ended it.
    """
    status = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else error.code
    if status not in STOPPED:
        raise error
    place = getattr(error, "resumable", "")
    return STOPPED[status] + (f"; --resume goes on from {place}" if place else ""), status


@contextmanager
def terminable() -> Iterator[None]:
    """Lets SIGTERM raise SystemExit, so that what is half done is removed."""

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def printable_warnings() -> Iterator[None]:
    """Inside, warnings, which may quote what stands in a file, do not control the terminal."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda *given, **more: printable(before(*given, **more), keep="\n")
    try:
        yield
    finally:
        warnings.formatwarning = before
