"""Reads typed values from JSON files; errors name file and field."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from mtlkit._files import check_file
from mtlkit._text import parse_json, shown
from mtlkit.errors import DataError

_Value = TypeVar("_Value")
REQUIRED: Any = object()


def read_fields(path: str | Path, what: str = "is not as mtlkit writes it") -> "Fields":
    """Reads the object in a JSON file.

    Args:
        path: the file.
        what: start of the error message about unexpected values.

    Raises:
        DataError: the file cannot be read, is not valid JSON, or does not contain an object.
    """
    path = Path(path)
    if path.exists():  # reading a pipe could block
        check_file(path)
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", path=path) from None
    except ValueError:
        raise DataError("is not valid JSON", path=path) from None
    return Fields(path, value, what)


class Fields:
    """Typed access to the values of a JSON object.

    All methods raise a DataError if the value is missing (and there is no default) or has another type.

    Args:
        path: the file, for messages.
        values: the object, a dict.
        what: start of the error message about unexpected values.
        where: prefix of the names in messages, with a dot at the end.

    Raises:
        DataError: `values` is not a dict.

    Example:
        >>> from pathlib import Path
        >>> from mtlkit._fields import Fields
        >>> Fields(Path("a.json"), {"classes": ["benign"]}).texts("classes")
        ('benign',)
        >>> Fields(Path("a.json"), {"seed": "x"}).integer("seed")
        Traceback (most recent call last):
        mtlkit.errors.DataError: a.json: is not as mtlkit writes it (seed: expected an integer, got 'x')
    """

    def __init__(self, path: Path, values: Any, what: str = "is not as mtlkit writes it", where: str = "") -> None:
        self.path = path
        self.what = what
        self.where = where
        self.values = values
        if not isinstance(values, dict):
            self._refuse(where.rstrip("."), "names and values", values)

    def _refuse(self, name: str, expected: str, value: object) -> NoReturn:
        words = f"expected {expected}, got {shown(value)}"
        raise DataError(f"{self.what} ({f'{name}: ' if name else ''}{words})", path=self.path)

    def get(self, name: str) -> Any:
        """Returns a value of any type."""
        if name not in self.values:
            raise DataError(f"{self.what} ({self.where}{name} is missing)", path=self.path)
        return self.values[name]

    def _read(
        self, name: str, default: Any, expected: str, read: Callable[[Any], _Value | None], *, several: bool = False
    ) -> Any:
        """Returns a value or a tuple of values; `read` returns None for a value of another type."""
        if default is not REQUIRED and self.values.get(name) is None:
            return default
        value = self.get(name)
        found = [read(one) for one in value] if several and isinstance(value, list) else [read(value)]
        if None in found or (several and not isinstance(value, list)):
            self._refuse(f"{self.where}{name}", f"a list of {expected}" if several else expected, value)
        return tuple(found) if several else found[0]

    def text(self, name: str, default: Any = REQUIRED) -> str:
        """Returns a string without NUL characters, which is valid in file names."""
        return self._read(name, default, "text", _text)

    def texts(self, name: str, default: Any = REQUIRED) -> tuple[str, ...]:
        """Returns a list of such strings, as a tuple."""
        return self._read(name, default, "text", _text, several=True)

    def integer(self, name: str, default: Any = REQUIRED) -> int:
        """Returns an integer of at most 64 bits."""
        return self._read(name, default, "an integer", _integer)

    def integers(self, name: str, default: Any = REQUIRED) -> tuple[int, ...]:
        """Returns a list of such integers, as a tuple."""
        return self._read(name, default, "integers", _integer, several=True)

    def number(self, name: str, default: Any = REQUIRED) -> float:
        """Returns a finite number."""
        return self._read(name, default, "a number", _number)

    def numbers(self, name: str, default: Any = REQUIRED) -> tuple[float, ...]:
        """Returns a list of finite numbers, as a tuple."""
        return self._read(name, default, "numbers", _number, several=True)

    def fields(self, name: str, default: Any = REQUIRED) -> "Fields":
        """Returns a nested object."""
        absent = default is not REQUIRED and self.values.get(name) is None
        value = default if absent else self.get(name)
        return Fields(self.path, value, self.what, f"{self.where}{name}.")

    def list_of_fields(self, name: str) -> "list[Fields]":
        """Returns a list of nested objects."""
        value = self.get(name)
        if not isinstance(value, list):
            self._refuse(f"{self.where}{name}", "a list", value)
        return [Fields(self.path, one, self.what, f"{self.where}{name}[{i}].") for i, one in enumerate(value)]


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and "\0" not in value else None


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e308:
        return None
    return float(value) if math.isfinite(value) else None
