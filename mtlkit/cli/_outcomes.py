"""The end of a command: one sentence with the option that helps, and the exit status."""

import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mtlkit._extras import missing_words
from mtlkit._memory import loader_killed, out_of_memory
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
    ExistsError: "--force replaces it",
    UnfinishedError: "`mtlkit train --resume` continues it",
    CheckpointError: "--force starts the run again",
    UnusableError: "--skip-bad leaves it out",
    MasksNeededError: "--masks names it",
    TooLargeError: "--max-pixels raises the limit",
}
GPU = ("CUDA", "CUDNN", "CUBLAS", "HIP")
STOPPED = {128 + signal.SIGINT: "interrupted", 128 + signal.SIGTERM: "terminated"}


def is_foreseen(error: Exception) -> bool:
    """Whether a user can cause the error; other errors are bugs and keep their traceback."""
    kinds = (ImportError, ValueError, OSError, FloatingPointError)
    return isinstance(error, kinds) or out_of_memory(error) or loader_killed(error)


def sentence(error: BaseException, memory: str = "", command: str = "") -> str:
    """The message of an error, and the option that helps.

    Args:
        error: what ended the command.
        memory: advice if memory runs out.
        command: the subcommand that ended.
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"`{f'mtlkit {command}'.strip()}` {missing_words(error.name)}"
    words = str(error).strip() or type(error).__name__
    if "Original Traceback" in words:  # from a process that loads data: a traceback, with the words at its end
        words = words.rpartition(f"{type(error).__name__}: ")[2]
    if loader_killed(error):
        return "; ".join(filter(None, ("out of memory: the system ended a process that reads images", memory)))
    if out_of_memory(error) and not isinstance(error, DataError):
        if "not enough memory" not in words:
            words = "out of memory on the GPU" if any(name in str(error) for name in GPU) else "out of memory"
        return printable("; ".join(filter(None, (words, memory))))
    if isinstance(error, OSError) and error.strerror:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        words = ": ".join([" and ".join(names), error.strerror] if names else [error.strerror])
    words = printable(words, keep="" if isinstance(error, DataError) else "\n")
    if isinstance(error, ExistsError) and error.resumable:
        return f"{words}; --resume continues it, --force starts again"
    hints = [hint for kind, hint in HINTS.items() if isinstance(error, kind)][:1]
    if (place := getattr(error, "resumable", "")) and not isinstance(error, FloatingPointError):
        hints.append(f"--resume continues from {place}")
    return "; ".join([words, ", ".join(hints)] if hints else [words])


def stopped(error: KeyboardInterrupt | SystemExit) -> tuple[str, int]:
    """The message after a signal ended the work, and the exit status.

    Raises:
        SystemExit: another reason ended it.
    """
    status = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else error.code
    if status not in STOPPED:
        raise error
    place = getattr(error, "resumable", "")
    return STOPPED[status] + (f"; --resume continues from {place}" if place else ""), status


@contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit, so that unfinished output is removed."""

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
    """Escapes control characters in warnings inside the block; they may quote the contents of files."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda *given, **more: printable(before(*given, **more), keep="\n")
    try:
        yield
    finally:
        warnings.formatwarning = before
