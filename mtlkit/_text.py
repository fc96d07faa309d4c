"""Values of users in messages: short, however large or deep they are."""

import reprlib

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
