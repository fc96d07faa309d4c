"""Values of JSON files, read by their types: an error names file and field."""

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
    """The names and values of a JSON file.

    Args:
        path: the file.
        what: what to say of a file with other values than expected.

    Raises:
        DataError: it cannot be read, is not valid JSON, or holds something else.
    """
    path = Path(path)
    if path.exists():  # a pipe might be waited for
        check_file(path)
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", path=path) from None
    except ValueError:
        raise DataError("is not valid JSON", path=path) from None
    return Fields(path, value, what)


class Fields:
    """Names and values.

    Args:
        path: of the file, for messages.
        values: what it holds.
        what: what to say of it where a value is not as expected.
        where: the name of these values in the file, with a dot behind it.

    Raises:
        DataError: the values have no names; from the methods, a value is missing, or is of another type.

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
        """A value of any type."""
        if name not in self.values:
            raise DataError(f"{self.what} ({self.where}{name} is missing)", path=self.path)
        return self.values[name]

    def _read(
        self, name: str, default: Any, expected: str, read: Callable[[Any], _Value | None], *, several: bool = False
    ) -> Any:
        """A value, or a list of values; `read` returns None for what is not of the type."""
        if default is not REQUIRED and self.values.get(name) is None:
            return default
        value = self.get(name)
        found = [read(one) for one in value] if several and isinstance(value, list) else [read(value)]
        if None in found or (several and not isinstance(value, list)):
            self._refuse(f"{self.where}{name}", f"a list of {expected}" if several else expected, value)
        return tuple(found) if several else found[0]

    def text(self, name: str, default: Any = REQUIRED) -> str:
        """Text that names of files may have."""
        return self._read(name, default, "text", _text)

    def texts(self, name: str, default: Any = REQUIRED) -> tuple[str, ...]:
        """A list of it."""
        return self._read(name, default, "text", _text, several=True)

    def integer(self, name: str, default: Any = REQUIRED) -> int:
        """An integer of at most 64 bits."""
        return self._read(name, default, "an integer", _integer)

    def integers(self, name: str, default: Any = REQUIRED) -> tuple[int, ...]:
        """A list of them."""
        return self._read(name, default, "integers", _integer, several=True)

    def number(self, name: str, default: Any = REQUIRED) -> float:
        """A finite number."""
        return self._read(name, default, "a number", _number)

    def numbers(self, name: str, default: Any = REQUIRED) -> tuple[float, ...]:
        """A list of them."""
        return self._read(name, default, "numbers", _number, several=True)

    def fields(self, name: str, default: Any = REQUIRED) -> "Fields":
        """Names and values within."""
        absent = default is not REQUIRED and self.values.get(name) is None
        value = default if absent else self.get(name)
        return Fields(self.path, value, self.what, f"{self.where}{name}.")

    def list_of_fields(self, name: str) -> "list[Fields]":
        """A list of them."""
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
