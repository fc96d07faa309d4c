"""Results that are written as they come, so that a killed process loses none that it had written."""

import json
from pathlib import Path
from typing import Any

from mtlkit._text import parse_json
from mtlkit.errors import DataError


class Journal:
    """A file of JSON values, one a line, of which each is whole or not there.

    Args:
        path: the file; it need not exist.
        shown: its name in messages.

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
        whole, _, _ = text.rpartition(b"\n")  # a last line without an end was not written whole
        self._end = len(whole) + 1 if whole else 0
        for number, line in enumerate(whole.split(b"\n") if whole else (), 1):
            try:
                self.lines.append(parse_json(line.decode()))
            except ValueError:
                raise DataError(f"{shown}: line {number} is damaged, so that nothing can be resumed") from None

    def append(self, value: Any) -> None:
        """Writes a value.

        Raises:
            DataError: it cannot be written.
        """
        text = json.dumps(value).encode() + b"\n"
        try:
            with self.path.open("r+b" if self._end else "wb") as file:
                file.seek(self._end)
                file.truncate()  # what a killed process or a full disk left of a line
                file.write(text)
        except OSError as error:
            raise DataError(f"{self.shown}: cannot be written ({error.strerror or error})") from None
        self._end += len(text)
        self.lines.append(value)

    def remove(self) -> None:
        """Removes the file."""
        self.path.unlink(missing_ok=True)
