"""The kinds of error that data, files and runs raise; each message is one sentence that says what and where."""

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
    """Something on disk is not as it must be; its subclasses are the kinds that a caller can do something about.

    Control characters, as names of files may hold, stand in the message as their escapes.

    Args:
        message: the sentence; without the path, where that is given.
        path: the file or folder that it concerns.

    Example:
        >>> from mtlkit.data import DataError, open_dataset
        >>> try:
        ...     open_dataset("/no/such/folder")
        ... except DataError as error:
        ...     print(error)
        /no/such/folder: there is no such folder
    """

    def __init__(self, message: str, *, path: str | Path | None = None) -> None:
        self.path, self.text = None if path is None else Path(path), printable(message, keep="\n")
        super().__init__(self.text if path is None else f"{printable(path)}: {self.text}")


class ExistsError(DataError):
    """A file or folder exists already, and `force`, which replaces what mtlkit wrote there, is not given.

    Args:
        message: the sentence.
        resumable: whether `resume` continues what is there.

    Example:
        >>> from mtlkit.errors import ExistsError
        >>> ExistsError("runs/mbdi: there is a run already", resumable=True).resumable
        True
    """

    def __init__(self, message: str, *, resumable: bool = False) -> None:
        super().__init__(message)
        self.resumable = resumable


class OccupiedError(DataError):
    """A folder holds what mtlkit does not own, or what is still needed; it is never replaced."""


class ChangedError(OccupiedError):
    """A file that mtlkit wrote has been changed since, and would be replaced or removed."""


class InUseError(DataError):
    """Another process writes to the folder."""


class UnfinishedError(DataError):
    """A run has not ended; `resume` continues it."""


class CheckpointError(DataError):
    """A checkpoint is missing or cannot be read; only training again, with `force`, replaces it."""


class UnusableError(DataError):
    """A part of the data cannot be used; `skip_bad` leaves it out."""


class MasksNeededError(DataError):
    """A network looks at known lesions, and `masks` is not given."""


class MismatchError(DataError):
    """A mask has another size than its image."""


class TooLargeError(DataError):
    """An image has more pixels than are read; `max_pixels` raises the limit."""
