"""Values of users: short in messages, however large or deep they are, and read from text without tracebacks."""

import json
import reprlib
from typing import Any

LENGTH = 80  # characters of a value


class _Short(reprlib.Repr):
    """Looks at a few items on a few levels alone, so that nested repetitions, as of YAML's anchors, cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxset, self.maxfrozenset, self.maxdict = 3, 6, 6, 6, 6, 6
        self.maxstring = self.maxother = self.maxlong = LENGTH

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 1024 else f"an integer of {x.bit_length()} bits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= LENGTH // 2 else f"{x[: LENGTH // 2]!r}..."


def shown(value: object) -> str:
    """`value` for a message, on one line and shortened: at most a few items, levels and characters of it.

    Example:
        >>> from mtlkit._text import shown
        >>> shown("benign"), shown(list(range(1000)))
        ("'benign'", '[0, 1, 2, 3, 4, 5, ...]')
    """
    words = _Short().repr(value)
    return words if len(words) <= 2 * LENGTH else f"{words[:LENGTH]}...{words[-LENGTH // 4 :]}"


def parse_json(text: str) -> Any:
    """The value of JSON; raises a ValueError, and nothing else, where the text is none.

    Example:
        >>> from mtlkit._text import parse_json
        >>> parse_json('{"a": [1, 2]}')
        {'a': [1, 2]}
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def parse_yaml(text: str) -> Any:
    """The value of YAML; raises a `yaml.YAMLError`, and nothing else, where the text is none.

    Example:
        >>> from mtlkit._text import parse_yaml
        >>> parse_yaml("a: [1, 2]")
        {'a': [1, 2]}
    """
    import yaml

    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise yaml.YAMLError("its brackets are nested too deeply") from None
    except (ValueError, OverflowError) as error:  # a date or a number that there is not
        raise yaml.YAMLError(str(error)) from None
