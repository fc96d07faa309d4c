"""Values of users: short in messages, however large or deep they are, and read from text without tracebacks."""

import json
import re
import reprlib
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

LENGTH = 80  # characters of a value
JOINERS = "\u200c\u200d"  # format characters that words of several scripts need


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


def printable(text: object, *, keep: str = "") -> str:
    r"""Text for a terminal or a page: what controls these, or is no character, stands as its escape.

    Escaped are control characters, line ends among them, characters that reverse or hide others, and the bytes of file
    names that are not UTF-8. File names may hold all of these.

    Args:
        text: what is to be shown.
        keep: characters to leave as they are.

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
    r"""A name that Markdown takes for no markup, in printable characters.

    Example:
        >>> from mtlkit._text import escape_markdown
        >>> escape_markdown("a|b*")
        'a\\|b\\*'
    """
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", printable(name))


def _escaped(character: str) -> str:
    kind = unicodedata.category(character)
    if "\udc80" <= character <= "\udcff":  # a byte, as Python decodes file names
        return f"\\x{ord(character) - 0xDC00:02x}"
    if kind in ("Cc", "Cf", "Cs", "Zl", "Zp") and character not in JOINERS:
        return character.encode("unicode_escape").decode("ascii")
    return character


def composed(name: str) -> str:
    """A name in the one normal form of Unicode (NFC) by which names are compared.

    Example:
        >>> from mtlkit._text import composed
        >>> composed("Zu\u0308st") == "Z\u00fcst"
        True
    """
    return unicodedata.normalize("NFC", name)


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


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that a mistyped one is probably meant to be; empty where none is near."""
    return next(iter(get_close_matches(word, list(known), 1)), "")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Words in brackets, with a space before, that offer the nearest of what is known; nothing where none is near.

    Example:
        >>> from mtlkit._text import did_you_mean
        >>> did_you_mean("trian", ["train", "predict"]), did_you_mean("xyz", ["train", "predict"])
        (" (did you mean 'train'?)", '')
    """
    meant = nearest(word, known)
    return f" (did you mean {meant!r}?)" if meant else ""
