"""Handles users' text: short values in messages, escaped control characters, parsing with one type of error."""

import json
import re
import reprlib
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

LENGTH = 80  # characters of a value
JOINERS = "\u200c\u200d"  # format characters that several scripts need within words


class _Short(reprlib.Repr):
    """Visits only a few items on a few levels, so that exponentially nested values (YAML anchors) cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxtuple, self.maxset, self.maxfrozenset, self.maxdict = 3, 6, 6, 6, 6, 6
        self.maxstring = self.maxother = self.maxlong = LENGTH

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 1024 else f"an integer of {x.bit_length()} bits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x) if len(x) <= LENGTH // 2 else f"{x[: LENGTH // 2]!r}..."


def shown(value: object) -> str:
    """Returns `value` for a message: on one line, shortened to a few items, levels and characters.

    Example:
        >>> from mtlkit._text import shown
        >>> shown("benign"), shown(list(range(1000)))
        ("'benign'", '[0, 1, 2, 3, 4, 5, ...]')
    """
    words = _Short().repr(value)
    return words if len(words) <= 2 * LENGTH else f"{words[:LENGTH]}...{words[-LENGTH // 4 :]}"


def printable(text: object, *, keep: str = "") -> str:
    r"""Returns text that is safe to print, with control characters escaped.

    Also escapes line ends, characters that reverse or hide others, and the bytes of file names that are not UTF-8. File
    names may contain all of these.

    Args:
        text: the text, or an object to convert to text.
        keep: characters to leave unchanged.

    Example:
        >>> from mtlkit._text import printable
        >>> printable("scan\x1b[2J \u202egnp.exe")
        'scan\\x1b[2J \\u202egnp.exe'
    """
    words = str(text)
    if words.isprintable():
        return words
    return "".join(one if one in keep else _escaped(one) for one in words)


def escape_markdown(name: str) -> str:
    r"""Escapes a name so that Markdown shows it literally, in printable characters.

    Example:
        >>> from mtlkit._text import escape_markdown
        >>> escape_markdown("a|b*")
        'a\\|b\\*'
    """
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", printable(name))


def _escaped(character: str) -> str:
    kind = unicodedata.category(character)
    if "\udc80" <= character <= "\udcff":  # how Python decodes a byte that is not UTF-8 in a file name
        return f"\\x{ord(character) - 0xDC00:02x}"
    if kind in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in JOINERS:
        return character.encode("unicode_escape").decode("ascii")
    return character


def composed(name: str) -> str:
    """Returns a name in Unicode's normal form NFC, in which names are compared.

    Example:
        >>> from mtlkit._text import composed
        >>> composed("Zu\u0308st") == "Z\u00fcst"
        True
    """
    return unicodedata.normalize("NFC", name)


def parse_json(text: str) -> Any:
    """Parses JSON; raises only a ValueError if the text is not valid.

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
    """Parses YAML; raises only a `yaml.YAMLError` if the text is not valid.

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
    except (ValueError, OverflowError) as error:  # an invalid date or number
        raise yaml.YAMLError(str(error)) from None


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns the known word that is most similar to a mistyped one; "" if none is similar."""
    return next(iter(get_close_matches(word, list(known), 1)), "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns a suggestion for a mistyped word, with a leading space; "" if no known word is similar.

    Example:
        >>> from mtlkit._text import did_you_mean
        >>> did_you_mean("trian", ["train", "predict"]), did_you_mean("xyz", ["train", "predict"])
        (" (did you mean 'train'?)", '')
    """
    meant = nearest(word, known)
    return f" (did you mean {meant!r}?)" if meant else ""
