"""Errors about data, files and runs; each message is one sentence that names the problem and the place."""

from pathlib import Path

from mtlkit._text import printable

__all__ = [
    "ChangedError",
    "CheckpointError",
    "DataError",
    "ExistsError",
    "InUseError",
    "MasksNeededError",
    "MismatchError",
    "OccupiedError",
    "TooLargeError",
    "UnfinishedError",
    "UnusableError",
]


class DataError(ValueError):
    """Something on disk is invalid; subclasses are the cases that a caller can handle.

    Control characters, which file names may contain, are escaped in the message.

    Args:
        message: the sentence, without the path if that is given.
        path: the file or folder concerned.

    Example:
        >>> from mtlkit.data import DataError, open_dataset
        >>> try:
        ...     open_dataset("/no/such/folder")
        ... except DataError as error:
        ...     print(error)
        /no/such/folder: there is no such folder
    """

    def __init__(self, message: str, *, path: str | Path | None = None) -> None:
        self.path: Path | None = None if path is None else Path(path)
        self.text: str = printable(message, keep="\n")
        super().__init__(self.text if path is None else f"{printable(path)}: {self.text}")


class ExistsError(DataError):
    """A file or folder exists already, and `force`, which replaces mtlkit's files there, is not given.

    Args:
        message: the sentence.
        resumable: whether `resume` can continue it.

    Example:
        >>> from mtlkit.errors import ExistsError
        >>> ExistsError("runs/mbdi: there is a run already", resumable=True).resumable
        True
    """

    def __init__(self, message: str, *, resumable: bool = False) -> None:
        super().__init__(message)
        self.resumable = resumable


class OccupiedError(DataError):
    """A folder contains files that mtlkit does not own, or that are still needed; it is never replaced."""


class ChangedError(OccupiedError):
    """A file written by mtlkit was changed since, and would be replaced or removed."""


class InUseError(DataError):
    """Another process writes to the folder."""


class UnfinishedError(DataError):
    """A run has not finished; `resume` continues it."""


class CheckpointError(DataError):
    """A checkpoint is missing or unreadable; train again with `force`."""


class UnusableError(DataError):
    """A part of the data cannot be used; `skip_bad` leaves it out."""


class MasksNeededError(DataError):
    """A network needs lesion masks, and `masks` is not given."""


class MismatchError(DataError):
    """A mask and its image differ in size."""


class TooLargeError(DataError):
    """An image has too many pixels; `max_pixels` raises the limit."""
