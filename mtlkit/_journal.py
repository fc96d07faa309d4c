"""Results that are saved one by one, so that a killed process loses none that it has written."""

import json
from pathlib import Path
from typing import Any

from mtlkit._text import parse_json
from mtlkit.errors import DataError


class Journal:
    """A file with one JSON value per line; an incomplete last line is ignored.

    Args:
        path: the file, which may be missing.
        shown: name of the file in messages.

    Raises:
        DataError: the file cannot be read, or a complete line is damaged.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mtlkit._journal import Journal
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "found")
        ...     Journal(path, path).append({"area": 3})
        ...     Journal(path, path).lines
        [{'area': 3}]
    """

    def __init__(self, path: Path, shown: Path) -> None:
        self.path = path
        self.shown = shown
        self.lines: list[Any] = []
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            text = b""
        except OSError as error:
            raise DataError(f"{shown}: cannot be read ({error.strerror})") from None
        whole, _, _ = text.rpartition(b"\n")  # a last line without line end is incomplete
        self._end = len(whole) + 1 if whole else 0
        for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
            try:
                self.lines.append(parse_json(line.decode()))
            except ValueError:
                raise DataError(f"{shown}: line {number} is damaged, so that nothing can be resumed") from None

    def append(self, value: Any) -> None:
        """Appends a value to the file.

        Raises:
            DataError: the file cannot be written.
        """
        text = json.dumps(value).encode() + b"\n"
        try:
            with self.path.open("r+b" if self._end else "wb") as file:
                file.seek(self._end)
                file.truncate()  # removes a line that a killed process or a full disk cut off
                file.write(text)
        except OSError as error:
            raise DataError(f"{self.shown}: cannot be written ({error.strerror or error})") from None
        self._end += len(text)
        self.lines.append(value)

    def remove(self) -> None:
        """Removes the file."""
        self.path.unlink(missing_ok=True)
